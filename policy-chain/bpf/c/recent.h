/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What each processor remembers of the packets that it has looked at lately: that such a packet passes.
 *
 * It holds as long as nothing has changed at any gate (`generation`) and the flow was looked at lately, so nothing else need be
 * asked, not even what the time is. Only packets that neither open a flow nor end one pass by it. */
#pragma once

#include "common.h"
#include "parse.h"

/* How long it holds, in ticks of the kernel: 0.1 to 1 s. What is forgotten soonest of all flows is forgotten after 10 s. */
#define RECENT_TICKS 100

/* Of the generation: nothing is to be remembered. */
#define BRIEF 1u

static __always_inline __u32 generation_now(void)
{
	__u32 zero = 0;
	struct settings *found = bpf_map_lookup_elem(&settings, &zero);

	return found ? *(volatile __u32 *)&found->generation : BRIEF;
}

static __always_inline __u32 kind_of(__u32 ether_type, __u8 protocol, __u32 hook)
{
	return ether_type << 16 | protocol << 8 | hook;
}

static __always_inline struct recent *slot(const struct __sk_buff *skb, __u32 source, __u32 destination, __u32 ports)
{
	__u32 mixed = source * 0x9e3779b1 + destination * 0x85ebca77 + ports * 0xc2b2ae3d + skb->ifindex * 0x27d4eb2f;
	__u32 index = mixed >> (32 - RECENT_BITS);

	return bpf_map_lookup_elem(&recent, &index);
}

enum {
	NOT_RECENT,
	/* It passes, as one did lately. */
	RECENT,
	/* So it would, but that it opens or ends a connection, of which somebody is to be told. */
	RECENT_NEWS,
};

/* Whether a packet is like one that passed lately. */
static __always_inline __u32 like_recent(struct __sk_buff *skb, __u32 hook, __u32 generation)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const __u8 *transport;
	struct recent *found;
	__u32 room, ports;
	__u8 protocol;

	if (skb->vlan_present)
		return NOT_RECENT;
	if (skb->protocol == bpf_htons(TYPE_IPV4)) {
		const struct ipv4_header *ip = data + ETHERNET_HEADER;

		transport = (void *)(ip + 1);
		if ((void *)(transport + 14) > end || ip->version_and_length != 0x45 ||
		    ip->fragment & bpf_htons(0x3fff))
			return NOT_RECENT;
		room = bpf_ntohs(ip->total) - sizeof(*ip);
		if (room > skb->len - ETHERNET_HEADER - sizeof(*ip))
			return NOT_RECENT;
		protocol = ip->protocol;
		ports = *(__u16 *)transport | (__u32) * (__u16 *)(transport + 2) << 16;
		found = slot(skb, ip->source, ip->destination, ports);
		if (!found || found->kind != kind_of(TYPE_IPV4, protocol, hook) ||
		    found->source.words[3] != ip->source || found->destination.words[3] != ip->destination)
			return NOT_RECENT;
	} else if (skb->protocol == bpf_htons(TYPE_IPV6)) {
		const struct ipv6_header *ip = data + ETHERNET_HEADER;

		transport = (void *)(ip + 1);
		if ((void *)(transport + 14) > end || ip->version >> 4 != 6)
			return NOT_RECENT;
		room = bpf_ntohs(ip->payload);
		if (room > skb->len - ETHERNET_HEADER - sizeof(*ip))
			return NOT_RECENT;
		protocol = ip->next;
		ports = *(__u16 *)transport | (__u32) * (__u16 *)(transport + 2) << 16;
		found = slot(skb, ip->source.words[3], ip->destination.words[3], ports);
		if (!found || found->kind != kind_of(TYPE_IPV6, protocol, hook) ||
		    !same_address(&found->source, &ip->source) || !same_address(&found->destination, &ip->destination))
			return NOT_RECENT;
	} else {
		return NOT_RECENT;
	}
	if (room < (protocol == PROTOCOL_TCP ? 20 : 8) || found->ports != ports || found->interface != skb->ifindex ||
	    found->from != skb->ingress_ifindex || found->generation != generation ||
	    (__u32)bpf_jiffies64() - found->tick >= RECENT_TICKS)
		return NOT_RECENT;
	return protocol == PROTOCOL_TCP && transport[13] & (TCP_SYN | TCP_FIN | TCP_RST) ? RECENT_NEWS : RECENT;
}

/* A plain packet has passed, and others like it may. */
static __always_inline void remember(const struct __sk_buff *skb, const struct scene *scene)
{
	const struct packet *packet = &scene->packet;
	__u32 ports = bpf_htons(packet->source_port) | (__u32)bpf_htons(packet->destination_port) << 16;
	struct recent *found;

	if (scene->generation & BRIEF)
		return;
	found = slot(skb, packet->source.words[3], packet->destination.words[3], ports);
	if (!found)
		return;
	found->source = packet->source;
	found->destination = packet->destination;
	found->ports = ports;
	found->interface = skb->ifindex;
	found->from = skb->ingress_ifindex;
	found->kind = kind_of(scene->ether_type, packet->protocol, scene->hook);
	found->generation = scene->generation;
	found->tick = bpf_jiffies64();
}
