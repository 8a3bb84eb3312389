/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Frames that are no plain TCP or UDP: ARP, neighbour discovery, errors, fragments. */
#pragma once

#include "flow.h"
#include "fragment.h"

/* Beside the reasons to drop: the frame passes, and is of no flow. */
#define PASSES 256

/* A pod answers for its own addresses only, or it could take those of others where a bridge joins them. */
static __always_inline int arp(struct __sk_buff *skb, const struct endpoint *endpoint, __u32 towards)
{
	struct {
		__be16 hardware;
		__be16 protocol;
		__u8 hardware_length;
		__u8 protocol_length;
		__be16 operation;
		__u8 source_mac[6];
		__u8 source[4];
	} message;
	struct address source;
	__u32 word;

	if (towards == DIRECTION_INGRESS || endpoint->flags & ENDPOINT_ANY_SOURCE)
		return PASSES;
	if (bpf_skb_load_bytes(skb, ETHERNET_HEADER, &message, sizeof(message)))
		return DROP_MALFORMED;
	if (message.protocol != bpf_htons(TYPE_IPV4) || message.protocol_length != 4 || message.hardware_length != 6)
		return DROP_NOT_IP;
	__builtin_memcpy(&word, message.source, 4);
	set_ipv4(&source, word);
	/* 0.0.0.0: a probe (RFC 5227). */
	return word == 0 || is_own(endpoint, &source) ? PASSES : DROP_SPOOFED;
}

/* ICMPv6 of the link, which no router forwards: neighbour discovery, multicast listeners. */
static __always_inline int link_scope(struct __sk_buff *skb, const struct endpoint *endpoint,
				      const struct packet *packet, __u32 towards)
{
	bool checked = towards == DIRECTION_EGRESS && !(endpoint->flags & ENDPOINT_ANY_SOURCE);
	struct address target;

	if (checked && (packet->flags == ND_ROUTER_ADVERTISEMENT || packet->flags == ND_REDIRECT))
		return DROP_SPOOFED; /* CVE-2020-10749 */
	switch (packet->flags) {
	case ND_ROUTER_SOLICITATION:
	case ND_ROUTER_ADVERTISEMENT:
	case ND_NEIGHBOUR_SOLICITATION:
	case ND_NEIGHBOUR_ADVERTISEMENT:
	case ND_REDIRECT:
		/* RFC 4861 7.1: anything else came through a router. */
		if (packet->hops != 255)
			return DROP_NONE;
		break;
	case MLD_QUERY:
	case MLD_REPORT:
	case MLD_DONE:
	case MLD2_REPORT:
		if (packet->hops != 1)
			return DROP_NONE;
		break;
	default:
		return DROP_NONE;
	}
	if (!checked)
		return PASSES;
	if (!is_own(endpoint, &packet->source) && !is_link_local(&packet->source) && !no_address(&packet->source))
		return DROP_SPOOFED;
	if (packet->flags != ND_NEIGHBOUR_ADVERTISEMENT)
		return PASSES;
	if (packet->room < 24 || bpf_skb_load_bytes(skb, packet->transport + 8, &target, sizeof(target)))
		return DROP_MALFORMED;
	return is_own(endpoint, &target) || is_link_local(&target) ? PASSES : DROP_SPOOFED;
}

/* Reads a frame that is not plain. Returns why it is dropped, PASSES, or DROP_NONE: it is to be judged. */
GLOBAL int unusual(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene)
{
	struct packet *packet;
	int reason;

	if (!endpoint || !scene)
		return DROP_BROKEN;
	packet = &scene->packet;
	if (skb->vlan_present)
		return DROP_NOT_IP;
	if (scene->ether_type == TYPE_ARP)
		return arp(skb, endpoint, scene->towards);
	if (scene->ether_type == TYPE_IPV4)
		reason = parse(skb, packet, ETHERNET_HEADER, skb->len, 0);
	else if (scene->ether_type == TYPE_IPV6)
		reason = parse(skb, packet, ETHERNET_HEADER, skb->len, PARSE_IPV6);
	else
		return DROP_NOT_IP;
	if (reason)
		return reason;
	if (packet->part == PART_LATER)
		return later_fragment(packet, endpoint->id, scene->towards);
	if (packet->protocol == PROTOCOL_ICMPV6 && packet->part == PART_WHOLE)
		return link_scope(skb, endpoint, packet, scene->towards);
	return DROP_NONE;
}

enum {
	UNRELATED,
	RELATED,
};

/* Whether an ICMP error is about a packet of a flow that passes, which went the other way: RELATED; STEERED, where the proxy
 * has the flow: it is the one to know. */
GLOBAL int related(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene)
{
	struct connection *connection;
	struct connection_key key = {};

	if (!endpoint || !scene)
		return UNRELATED;
	key.endpoint = endpoint->id;
	if (!quoted_key(skb, scene, scene->towards, &key))
		return UNRELATED;
	connection = bpf_map_lookup_elem(&connections, &key);
	if (!connection || connection->expires <= scene->now)
		return UNRELATED;
	/* One that is to be judged again waits for a packet of its own. */
	if (connection->judged >> JUDGED_REVISION_SHIFT != endpoint->revision)
		return UNRELATED;
	if ((connection->judged & 255) == VERDICT_REDIRECT) {
		scene->direction = connection->direction;
		return STEERED;
	}
	return passes(connection->judged & 255) ? RELATED : UNRELATED;
}
