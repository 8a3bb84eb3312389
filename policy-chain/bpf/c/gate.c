// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The gate of a pod at its host interface, in both directions, and what judges Services at the uplinks (DESIGN 7).
 *
 * An established flow costs one lookup of its endpoint and one of its connection. Everything else is out of line. */

#include "common.h"
#include "parse.h"
#include "report.h"
#include "judge.h"
#include "conntrack.h"
#include "flow.h"
#include "fragment.h"
#include "backend.h"
#include "unusual.h"
#include "steer.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Whether a flow's packet passes as the last one did, and there is nothing to write down but that it came. */
static __always_inline bool goes_on(struct scene *scene, const struct endpoint *endpoint)
{
	struct connection *connection = bpf_map_lookup_elem(&connections, &scene->key);
	__u64 verdict, expires;
	__u32 state;

	if (!connection || connection->expires <= scene->now)
		return false;
	verdict = connection->judged ^ endpoint->revision << JUDGED_REVISION_SHIFT;
	if (verdict != VERDICT_ALLOW && verdict != VERDICT_DEFER)
		return false;
	/* An answer from a backend that has yet to be judged. */
	if (verdict == VERDICT_DEFER && endpoint->egress && scene->towards == DIRECTION_INGRESS &&
	    connection->backend_judged != (endpoint->revision << JUDGED_REVISION_SHIFT | VERDICT_ALLOW))
		return false;
	state = connection->state;
	if (state & CONNECTION_RESET)
		return false;
	if (connection->direction != scene->towards && !(state & CONNECTION_ANSWERED))
		return false;
	expires = scene->now + timeout(scene->key.protocol, state);
	/* Not for each packet: the line stays shared between processors. */
	if (expires - connection->expires > SECOND)
		connection->expires = expires;
	return true;
}

static __always_inline int gate(struct __sk_buff *skb, __u32 hook)
{
	__u32 index = skb->ifindex, towards = hook == HOOK_FROM_POD ? DIRECTION_EGRESS : DIRECTION_INGRESS;
	struct scene scene = {};
	struct endpoint *endpoint, *from;
	bool is_flow, plain;
	int reason = DROP_NONE, action;

	/* Of a flow that was judged where the proxy took it. */
	if (hook == HOOK_FROM_POD && skb->mark == MARK_FROM_PROXY) {
		skb->mark = 0;
		bpf_skb_change_type(skb, PACKET_HOST);
		return PASS;
	}
	scene.hook = hook;
	scene.towards = towards;
	scene.direction = towards;
	scene.ether_type = bpf_ntohs(skb->protocol);
	scene.now = bpf_ktime_get_coarse_ns();
	scene.interface = index;
	scene.length = skb->len;
	endpoint = bpf_map_lookup_elem(&endpoints, &index);
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
	if (towards == DIRECTION_EGRESS) {
		if (!(endpoint->flags & ENDPOINT_ANY_SOURCE) && !is_own(endpoint, &scene.packet.source))
			return dropped(&scene, DROP_SPOOFED);
	} else if (skb->ingress_ifindex) {
		from = sender(skb, &scene.packet);
		if (from && from->egress) {
			struct connection_key key = scene.key;

			reason = second(skb, from, &scene);
			if (reason)
				return dropped(&scene, reason);
			forget(&scene, endpoint->id);
			scene.direction = towards;
			scene.origin = ORIGIN_FORWARDED;
			scene.key = key;
		}
	}
	if (is_flow && scene.packet.part == PART_WHOLE && !is_opening(&scene.packet) &&
	    !(scene.packet.protocol == PROTOCOL_TCP && scene.packet.flags & (TCP_FIN | TCP_RST)) &&
	    goes_on(&scene, endpoint))
		return PASS;
	if (!is_flow && is_error(&scene.packet)) {
		action = related(skb, endpoint, &scene);
		if (action == RELATED)
			return PASS;
		if (action == STEERED)
			return steer(skb, &scene);
	}
	if (towards == DIRECTION_INGRESS && is_flow) {
		reason = judge_answer(skb, endpoint, &scene);
		if (reason)
			return dropped(&scene, reason);
		forget(&scene, endpoint->id);
	}
	action = slow(skb, endpoint, &scene, is_flow);
	if (action != SHOT && scene.packet.part == PART_FIRST) {
		reason = first_fragment(&scene.packet, endpoint->id, towards, scene.now);
		if (reason)
			return dropped(&scene, reason);
	}
	return action == STEERED ? steer(skb, &scene) : action;
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
	struct endpoint *found, *from;
	struct scene scene = {};
	int reason;

	if (index == 0)
		return PASS;
	found = bpf_map_lookup_elem(&endpoints, &index);
	if (!found || (found->egress == 0 && !(found->flags & ENDPOINT_BRIDGE)))
		return PASS;
	scene.hook = HOOK_UPLINK;
	scene.towards = DIRECTION_EGRESS;
	scene.ether_type = bpf_ntohs(skb->protocol);
	scene.now = bpf_ktime_get_coarse_ns();
	scene.interface = skb->ifindex;
	scene.length = skb->len;
	pull(skb);
	if (!parse_plain(skb, &scene.packet, scene.ether_type)) {
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
	from = behind(skb, found, &scene.packet);
	if (!from || !from->egress)
		return PASS;
	reason = second(skb, from, &scene);
	return reason ? dropped(&scene, reason) : PASS;
}

/* On both sides of a host interface until its gate is set up. */
SEC("classifier")
int drop(struct __sk_buff *skb)
{
	count_drop(DROP_NOT_READY, skb->len);
	return SHOT;
}
