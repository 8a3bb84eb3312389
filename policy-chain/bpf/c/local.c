// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The second judgement (DESIGN 7) where it can be made nowhere else: at local input, for a flow of a pod to a Service whose
 * backend is on the node itself. Such a packet passes no interface after its pod's.
 *
 * A netfilter program (Linux 6.4) sees it as the host will take it, and connection tracking knows how the pod sent it. This is
 * an object of its own, without global functions: it is loaded by hand, without type information. */

#include "common.h"
#include "conntrack.h"
#include "backend.h"

enum {
	ACCEPT_PACKET = 1,
	DROP_PACKET = 0,
};

struct net_device {
	int ifindex;
} __attribute__((preserve_access_index));

struct nf_hook_state {
	struct net_device *in;
} __attribute__((preserve_access_index));

/* include/linux/netfilter.h */
struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
};

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* The pod's endpoint, whose `index` it becomes; null: the packet came from no pod. */
static __always_inline const struct endpoint *pod_of(__u32 *index, const struct address *source)
{
	struct endpoint *found = bpf_map_lookup_elem(&endpoints, index);
	__u32 *owner;

	if (!found || !(found->flags & ENDPOINT_BRIDGE))
		return found;
	owner = bpf_map_lookup_elem(&owners, source);
	if (!owner)
		return NULL;
	*index = *owner;
	return bpf_map_lookup_elem(&endpoints, index);
}

/* What the packet was when the pod sent it, and who takes it. False: it is not the first half of a tracked flow. */
static __always_inline bool flow_of(struct sk_buff *skb, struct scene *scene)
{
	struct tuple tuple = {};

	if (tracked((void *)skb, &tuple, 0) != TRACKED_ORIGINAL)
		return false;
	set_address(&scene->key.own, tuple.source, tuple.family);
	set_address(&scene->key.peer, tuple.destination, tuple.family);
	scene->key.own_port = bpf_ntohs(tuple.source_port);
	scene->key.peer_port = bpf_ntohs(tuple.destination_port);
	scene->key.protocol = tuple.protocol;
	scene->ether_type = tuple.family == FAMILY_IPV4 ? TYPE_IPV4 : TYPE_IPV6;
	/* Whoever answers is who takes it. */
	if (tracked((void *)skb, &tuple, 1) != TRACKED_ORIGINAL)
		return false;
	set_address(&scene->other, tuple.source, tuple.family);
	scene->other_port = bpf_ntohs(tuple.source_port);
	return true;
}

SEC("classifier")
int local_input(struct bpf_nf_ctx *ctx)
{
	const struct nf_hook_state *state = ctx->state;
	struct sk_buff *skb = ctx->skb;
	struct net_device *in = NULL;
	const struct endpoint *from;
	struct connection *connection;
	struct scene scene = {};
	__u32 index = 0;
	int reason;

	if (bpf_core_read(&in, sizeof(in), &state->in) || !in)
		return ACCEPT_PACKET;
	if (bpf_core_read(&index, sizeof(index), &in->ifindex))
		return ACCEPT_PACKET;
	/* Most of what the node takes comes from no pod. */
	if (!bpf_map_lookup_elem(&endpoints, &index))
		return ACCEPT_PACKET;
	if (!flow_of(skb, &scene) || !has_ports(scene.key.protocol))
		return ACCEPT_PACKET;
	scene.interface = index;
	from = pod_of(&index, &scene.key.own);
	if (!from)
		return ACCEPT_PACKET;
	if (!from->egress)
		return is_still(from, index) ? ACCEPT_PACKET : DROP_PACKET;
	bpf_core_read(&scene.length, sizeof(scene.length), &skb->len);
	scene.now = bpf_ktime_get_ns();
	scene.holder = index;
	scene.hook = HOOK_LOCAL_INPUT;
	scene.towards = DIRECTION_EGRESS;
	scene.direction = DIRECTION_EGRESS;
	scene.packet.protocol = scene.key.protocol;
	scene.endpoint = from->id;
	scene.key.endpoint = from->id;
	connection = bpf_map_lookup_elem(&connections, &scene.key);
	if (connection && connection->expires > scene.now && connection->direction == DIRECTION_EGRESS) {
		if (!is_deferred(connection))
			return ACCEPT_PACKET;
		if (connection->backend_judged ==
		    backend_judgement(from->revision, VERDICT_ALLOW, &scene.other, scene.other_port))
			return ACCEPT_PACKET;
	} else {
		struct frontend key = {
			.address = scene.key.peer, .port = scene.key.peer_port, .protocol = scene.key.protocol,
		};

		/* Forgotten since it passed the pod's gate. */
		connection = NULL;
		if (!bpf_map_lookup_elem(&frontends, &key))
			return ACCEPT_PACKET;
	}
	reason = judge_backend(from, &scene, connection);
	if (!reason)
		return ACCEPT_PACKET;
	dropped(&scene, reason);
	return DROP_PACKET;
}
