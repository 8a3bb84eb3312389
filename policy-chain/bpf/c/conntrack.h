/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What the kernel's connection tracking knows of a packet: its tuples before translation.
 *
 * The packet carries a pointer to its connection in `_nfct`. Where that is in this kernel is relocated at load. Where the
 * connection has its tuples is a setting: connection tracking may be a module, of which relocation knows nothing. As long as it is
 * not set, nothing is known. */
#pragma once

#include "common.h"

struct sk_buff {
	unsigned int len;
	unsigned long _nfct;
} __attribute__((preserve_access_index));

/* struct nf_conntrack_tuple of include/net/netfilter/nf_conntrack_tuple.h, the same since 2.6. */
struct tuple {
	__u32 source[4];
	__be16 source_port;
	__u16 family;
	__u32 destination[4];
	__be16 destination_port;
	__u8 protocol;
	__u8 direction;
};
_Static_assert(sizeof(struct tuple) == 40, "size");

enum {
	FAMILY_IPV4 = 2,
	FAMILY_IPV6 = 10,
};

/* struct nf_conntrack_tuple_hash, of which a connection has two, the same since 2.6.25: a list's node, then the tuple. */
#define TUPLE_HASH_BYTES 56
#define TUPLE_IN_HASH 16

/* How a packet is tracked. */
enum {
	UNTRACKED,
	/* It goes where the flow's first packet went. */
	TRACKED_ORIGINAL,
	TRACKED_REPLY,
};

/* The low bits of `_nfct`, enum ip_conntrack_info: from IP_CT_IS_REPLY on, but for IP_CT_NEW and IP_CT_RELATED. */
#define TRACKING_INFO 7ul
#define TRACKING_REPLY 3ul
#define TRACKING_UNTRACKED 7ul

static __always_inline void set_address(struct address *address, const __u32 *words, __u16 family)
{
	if (family == FAMILY_IPV4) {
		set_ipv4(address, words[0]);
	} else {
		__builtin_memcpy(address, words, sizeof(*address));
	}
}

/* Reads the tuple of the flow's first packet, or of the answers to it. Returns how the packet is tracked. */
GLOBAL int tracked(struct __sk_buff *skb, struct tuple *tuple, __u32 answers)
{
	const struct sk_buff *kernel = (void *)skb;
	unsigned long tracking = 0, connection;
	__u32 zero = 0, tuples;
	struct settings *found;

	if (!tuple)
		return UNTRACKED;
	found = bpf_map_lookup_elem(&settings, &zero);
	tuples = found ? found->conntrack_tuples : 0;
	if (!tuples || !bpf_core_field_exists(kernel->_nfct))
		return UNTRACKED;
	if (bpf_core_read(&tracking, sizeof(tracking), &kernel->_nfct))
		return UNTRACKED;
	connection = tracking & ~TRACKING_INFO;
	tracking &= TRACKING_INFO;
	if (!connection || tracking == TRACKING_UNTRACKED)
		return UNTRACKED;
	connection += tuples + TUPLE_IN_HASH + (answers ? TUPLE_HASH_BYTES : 0);
	if (bpf_probe_read_kernel(tuple, sizeof(*tuple), (void *)connection))
		return UNTRACKED;
	if (tuple->family != FAMILY_IPV4 && tuple->family != FAMILY_IPV6)
		return UNTRACKED;
	return tracking >= TRACKING_REPLY ? TRACKED_REPLY : TRACKED_ORIGINAL;
}
