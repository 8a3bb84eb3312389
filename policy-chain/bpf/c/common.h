/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What all parts of the gate use. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#include "layout.h"

/* The next filter decides; where there is none, the packet passes. */
#define PASS TC_ACT_UNSPEC
#define SHOT TC_ACT_SHOT

/* A global function: the verifier looks at it once, whatever its callers do, and asks it to check its pointers. Without
 * these the paths through the gate multiply beyond what it looks at. */
#ifndef GLOBAL
#define GLOBAL __attribute__((noinline))
#endif
#define SECOND 1000000000ull

/* What becomes of a packet of a flow that the proxy has: it is yet to be sent there. */
#define STEERED TC_ACT_REDIRECT

#define ETHERNET_HEADER 14u

enum {
	TYPE_IPV4 = 0x0800,
	TYPE_ARP = 0x0806,
	TYPE_IPV6 = 0x86dd,
};

enum {
	PROTOCOL_ICMP = 1,
	PROTOCOL_TCP = 6,
	PROTOCOL_UDP = 17,
	PROTOCOL_ICMPV6 = 58,
	PROTOCOL_SCTP = 132,
};

enum {
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
	TCP_ACK = 16,
};

/* Which part of a packet a frame is. */
enum {
	PART_WHOLE,
	PART_FIRST,
	PART_LATER,
};

/* What the headers say. */
struct packet {
	struct address source;
	struct address destination;
	/* Bytes from the transport header to the end of the IP packet. */
	__u32 room;
	__u32 identification;
	/* Where the transport header is, from the Ethernet header on. */
	__u32 transport;
	/* Of an ICMP query both are its identifier. */
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	/* TCP flags, the type of an ICMP message, or the first chunk of SCTP. */
	__u8 flags;
	__u8 part;
	__u8 hops;
};

/* A packet at a gate, and what was found out about it. */
struct scene {
	struct packet packet;
	struct connection_key key;
	/* What was judged in place of the peer; the backend. */
	struct address other;
	__u64 now;
	/* Of the endpoint that was asked. */
	__u64 revision;
	__u32 endpoint;
	__u32 decision;
	/* Index of the interface. */
	__u32 interface;
	/* Under which index the endpoint that is asked stands in `endpoints`. */
	__u32 holder;
	/* Of which what was found out is true; BRIEF: of this packet alone. */
	__u32 generation;
	/* Of the frame, in bytes. */
	__u32 length;
	__u16 other_port;
	__u16 ether_type;
	__u8 hook;
	/* The packet's direction. */
	__u8 towards;
	/* The flow's. */
	__u8 direction;
	__u8 origin;
	__u8 verdict;
	__u8 basis;
	/* The endpoint is a dry run. */
	__u8 audit;
	/* Policies that are dry runs would send to the proxy what passes without them. */
	__u8 seen;
};

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->words[3] == b->words[3] && a->words[2] == b->words[2] && a->words[1] == b->words[1] &&
	       a->words[0] == b->words[0];
}

static __always_inline bool no_address(const struct address *a)
{
	return (a->words[0] | a->words[1] | a->words[2] | a->words[3]) == 0;
}

static __always_inline bool is_mapped(const struct address *a)
{
	return a->words[0] == 0 && a->words[1] == 0 && a->words[2] == bpf_htonl(0xffff);
}

static __always_inline void set_ipv4(struct address *a, __u32 address)
{
	a->words[0] = 0;
	a->words[1] = 0;
	a->words[2] = bpf_htonl(0xffff);
	a->words[3] = address;
}

/* fe80::/10 */
static __always_inline bool is_link_local(const struct address *a)
{
	return (a->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Whether the entry of an index is still this one. Where an entry is replaced, the kernel may give its memory to another one at
 * once: what was read of it before is true if it is. */
static __always_inline bool is_still(const struct endpoint *endpoint, __u32 index)
{
	return bpf_map_lookup_elem(&endpoints, &index) == endpoint;
}

/* Whether an address is one of the pod's. */
static __always_inline bool is_own(const struct endpoint *endpoint, const struct address *address)
{
	if (no_address(address))
		return false;
#pragma unroll
	for (__u32 i = 0; i < ENDPOINT_ADDRESSES; i++) {
		if (same_address(&endpoint->addresses[i].address, address))
			return true;
	}
	return false;
}
