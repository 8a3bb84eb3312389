/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Only the first fragment of a packet has ports; the others follow it. */
#pragma once

#include "common.h"
#include "flow.h"

static __always_inline void fragment_key(const struct packet *packet, __u32 endpoint, __u32 towards,
					 struct fragment_key *key)
{
	key->endpoint = endpoint;
	key->source = packet->source;
	key->destination = packet->destination;
	key->identification = packet->identification;
	/* IPv6: only the first fragment says (RFC 8200 4.5). */
	key->protocol = is_mapped(&packet->source) ? packet->protocol : 0;
	key->direction = towards;
	key->unused = 0;
}

/* Remembers a first fragment that was let pass. */
GLOBAL int first_fragment(const struct packet *packet, __u32 endpoint, __u32 towards, __u64 now)
{
	struct fragment value = { .expires = now + TIMEOUT_FRAGMENTS };
	struct fragment_key key;

	if (!packet)
		return DROP_FRAGMENT;
	value.source_port = packet->source_port;
	value.destination_port = packet->destination_port;
	value.icmp_type = is_icmp(packet->protocol) ? packet->flags : 0;
	value.protocol = packet->protocol;
	fragment_key(packet, endpoint, towards, &key);
	return bpf_map_update_elem(&fragments, &key, &value, BPF_ANY) ? DROP_FRAGMENT : DROP_NONE;
}

/* Puts into a packet what its first fragment said. Returns why it is dropped. */
GLOBAL int later_fragment(struct packet *packet, __u32 endpoint, __u32 towards)
{
	struct fragment_key key;
	struct fragment *first;

	if (!packet)
		return DROP_FRAGMENT;
	fragment_key(packet, endpoint, towards, &key);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first || first->expires <= bpf_ktime_get_coarse_ns())
		return DROP_FRAGMENT;
	packet->source_port = first->source_port;
	packet->destination_port = first->destination_port;
	packet->flags = first->icmp_type;
	packet->protocol = first->protocol;
	return DROP_NONE;
}
