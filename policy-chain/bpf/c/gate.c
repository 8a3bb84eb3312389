// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The gate of a pod at its host interface, in both directions, and what judges Services at the uplinks (DESIGN 7).
 *
 * A packet like one that passed lately costs no more than to find that one. Everything else is behind that. */

#include "common.h"
#include "parse.h"
#include "recent.h"
#include "report.h"
#include "judge.h"
#include "conntrack.h"
#include "flow.h"
#include "fragment.h"
#include "backend.h"
#include "open.h"
#include "unusual.h"
#include "steer.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Whether a packet ends a flow. */
static __always_inline bool is_last(const struct packet *packet)
{
	return packet->protocol == PROTOCOL_TCP && packet->flags & (TCP_FIN | TCP_RST);
}

/* A packet that is to be looked at whole. */
GLOBAL int look(struct __sk_buff *skb, const struct endpoint *endpoint, __u32 hook, __u32 generation, __u32 recent)
{
	__u32 towards = hook == HOOK_FROM_POD ? DIRECTION_EGRESS : DIRECTION_INGRESS;
	struct scene scene = {};
	bool is_flow, plain;
	int reason = DROP_NONE, action;

	scene.hook = hook;
	scene.generation = generation;
	scene.towards = towards;
	scene.direction = towards;
	scene.ether_type = bpf_ntohs(skb->protocol);
	scene.now = bpf_ktime_get_coarse_ns();
	scene.interface = skb->ifindex;
	scene.holder = skb->ifindex;
	scene.length = skb->len;
	if (!endpoint)
		return dropped(&scene, DROP_UNKNOWN_ENDPOINT);
	scene.endpoint = endpoint->id;
	pull(skb);
	plain = !skb->vlan_present && parse_plain(skb, &scene.packet, scene.ether_type);
	if (!plain) {
		reason = unusual(skb, endpoint, &scene);
		if (reason == PASSES && !(endpoint->flags & ENDPOINT_LOCKDOWN))
			return PASS;
	}
	is_flow = key_of(&scene.packet, towards, &scene.key);
	scene.key.endpoint = endpoint->id;
	if (endpoint->flags & ENDPOINT_LOCKDOWN)
		return dropped(&scene, DROP_LOCKDOWN);
	if (reason)
		return dropped(&scene, reason);
	if (recent && !is_opening(&scene.packet)) {
		/* Its source may send it, to this pod. */
	} else if (towards == DIRECTION_EGRESS) {
		if (!(endpoint->flags & ENDPOINT_ANY_SOURCE) && !is_own(endpoint, &scene.packet.source))
			return dropped(&scene, DROP_SPOOFED);
	} else if (skb->ingress_ifindex) {
		reason = judge_sender(skb, endpoint, &scene);
		if (reason)
			return dropped(&scene, reason);
	}
	if (!is_flow && is_error(&scene.packet)) {
		action = related(skb, endpoint, &scene);
		if (action == RELATED)
			return PASS;
		if (action == STEERED)
			return steer(skb, &scene);
	}
	action = judge_flow(skb, endpoint, &scene, is_flow);
	if (action != SHOT && scene.packet.part == PART_FIRST) {
		reason = first_fragment(&scene.packet, endpoint->id, towards, scene.now);
		if (reason)
			return dropped(&scene, reason);
	}
	if (action == STEERED)
		return steer(skb, &scene);
	if (action == PASS && plain && !is_last(&scene.packet))
		remember(skb, &scene);
	return action;
}

static __always_inline int gate(struct __sk_buff *skb, __u32 hook)
{
	__u32 index = skb->ifindex, recent;
	__u32 generation = generation_now();
	struct endpoint *endpoint;

	/* Of a flow that was judged where the proxy took it. */
	if (hook == HOOK_FROM_POD && skb->mark == MARK_FROM_PROXY) {
		skb->mark = 0;
		bpf_skb_change_type(skb, PACKET_HOST);
		return PASS;
	}
	recent = like_recent(skb, hook, generation);
	if (recent == RECENT)
		return PASS;
	endpoint = bpf_map_lookup_elem(&endpoints, &index);
	return look(skb, endpoint, hook, generation, recent);
}

/* Ingress of the host interface: what the pod sends. */
SEC("classifier")
int from_pod(struct __sk_buff *skb)
{
	return gate(skb, HOOK_FROM_POD);
}

/* Egress of the host interface: what goes to the pod. */
SEC("classifier")
int to_pod(struct __sk_buff *skb)
{
	return gate(skb, HOOK_TO_POD);
}

/* Egress of an uplink: what leaves the node. */
SEC("classifier")
int uplink(struct __sk_buff *skb)
{
	__u32 index = skb->ingress_ifindex;
	__u32 generation = generation_now();
	struct endpoint *found, *from;
	struct scene scene = {};
	bool plain;
	int reason;

	if (index == 0 || like_recent(skb, HOOK_UPLINK, generation) == RECENT)
		return PASS;
	found = bpf_map_lookup_elem(&endpoints, &index);
	if (!found)
		return PASS;
	if (found->egress == 0 && !(found->flags & ENDPOINT_BRIDGE) && is_still(found, index))
		return PASS;
	scene.hook = HOOK_UPLINK;
	/* All pods behind a bridge come by the same interface. */
	scene.generation = found->flags & ENDPOINT_BRIDGE ? BRIEF : generation;
	scene.towards = DIRECTION_EGRESS;
	scene.ether_type = bpf_ntohs(skb->protocol);
	scene.now = bpf_ktime_get_coarse_ns();
	scene.interface = skb->ifindex;
	scene.length = skb->len;
	pull(skb);
	plain = parse_plain(skb, &scene.packet, scene.ether_type);
	if (!plain) {
		if (scene.ether_type == TYPE_IPV4)
			reason = parse(skb, &scene.packet, ETHERNET_HEADER, skb->len, 0);
		else if (scene.ether_type == TYPE_IPV6)
			reason = parse(skb, &scene.packet, ETHERNET_HEADER, skb->len, PARSE_IPV6);
		else
			return PASS;
		/* No pod's gate let it pass like this. */
		if (reason)
			return dropped(&scene, reason);
	}
	from = behind(skb, found, &scene.packet, &index);
	if (!from)
		return PASS;
	if (!from->egress) {
		if (is_still(from, index))
			return PASS;
		return dropped(&scene, DROP_BROKEN);
	}
	scene.holder = index;
	reason = second(skb, from, &scene);
	if (reason)
		return dropped(&scene, reason);
	if (plain && !skb->vlan_present)
		remember(skb, &scene);
	return PASS;
}

/* On both sides of a host interface until its gate is set up. */
SEC("classifier")
int drop(struct __sk_buff *skb)
{
	count_drop(DROP_NOT_READY, skb->len);
	return SHOT;
}
