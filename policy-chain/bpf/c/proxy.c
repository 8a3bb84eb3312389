// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* What belongs to the proxy's namespaces (DESIGN 8): at the host's end of their links, from the proxy to whom it speaks in
 * whose name; inside, from a packet to the socket that takes it. */

#include <linux/if_packet.h>

#include "common.h"
#include "parse.h"
#include "report.h"
#include "judge.h"
#include "conntrack.h"
#include "flow.h"
#include "fragment.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* The pod that has an address, and its interface. */
static __always_inline struct endpoint *owner_of(const struct address *address, __u32 *index)
{
	__u32 *owner = bpf_map_lookup_elem(&owners, address);

	if (!owner)
		return NULL;
	*index = *owner;
	return bpf_map_lookup_elem(&endpoints, index);
}

enum {
	/* Not a packet of a flow that the proxy has of a pod there. */
	NOT_OF_POD = 0,
	OF_POD = 1,
};

/* Whether a packet that goes `towards` at a pod's gate is of a flow that this proxy has. OF_POD: the pod's interface is in
 * `scene->interface`; SHOT: it was dropped. */
GLOBAL int of_pod(struct __sk_buff *skb, struct scene *scene, __u32 towards)
{
	struct connection *connection;
	struct endpoint *endpoint;
	struct packet *packet;
	struct address own;
	__u32 index = 0, direction;
	bool error;

	if (!scene)
		return SHOT;
	packet = &scene->packet;
	direction = scene->direction;
	own = towards == DIRECTION_EGRESS ? packet->source : packet->destination;
	endpoint = owner_of(&own, &index);
	if (!endpoint)
		return NOT_OF_POD;
	scene->endpoint = endpoint->id;
	scene->holder = index;
	scene->towards = towards;
	if (packet->part == PART_LATER && later_fragment(packet, endpoint->id, towards))
		return NOT_OF_POD;
	error = is_icmp(packet->protocol);
	if (error) {
		if (!is_error(packet) || !quoted_key(skb, scene, towards, &scene->key))
			return NOT_OF_POD;
	} else if (!key_of(packet, towards, &scene->key)) {
		return NOT_OF_POD;
	}
	scene->key.endpoint = endpoint->id;
	connection = bpf_map_lookup_elem(&connections, &scene->key);
	if (!connection || connection->expires <= scene->now || connection->direction != direction)
		return NOT_OF_POD;
	if (endpoint->flags & ENDPOINT_LOCKDOWN)
		return dropped(scene, DROP_LOCKDOWN);
	if (error) {
		if (connection->judged != (endpoint->revision << JUDGED_REVISION_SHIFT | VERDICT_REDIRECT))
			return NOT_OF_POD;
	} else {
		int action = follow_flow(endpoint, scene, connection);

		if (action == SHOT)
			return SHOT;
		/* It is let pass directly: this is what the proxy has left of an older one. */
		if (action != STEERED)
			return NOT_OF_POD;
		if (packet->part == PART_FIRST && first_fragment(packet, endpoint->id, towards, scene->now))
			return dropped(scene, DROP_FRAGMENT);
	}
	scene->interface = index;
	return OF_POD;
}

GLOBAL int from_proxy(struct __sk_buff *skb, __u32 direction)
{
	struct scene scene = {};
	int found, reason;

	scene.hook = HOOK_FROM_PROXY;
	scene.direction = direction;
	scene.ether_type = bpf_ntohs(skb->protocol);
	scene.now = bpf_ktime_get_coarse_ns();
	scene.interface = skb->ifindex;
	scene.length = skb->len;
	pull(skb);
	if (skb->vlan_present || !parse_plain(skb, &scene.packet, scene.ether_type)) {
		/* There is nobody to be found on this link. */
		if (skb->vlan_present || (scene.ether_type != TYPE_IPV4 && scene.ether_type != TYPE_IPV6)) {
			count_drop(DROP_NOT_IP, scene.length);
			return SHOT;
		}
		reason = parse(skb, &scene.packet, ETHERNET_HEADER, skb->len, scene.ether_type == TYPE_IPV6 ? PARSE_IPV6 : 0);
		if (reason)
			return dropped(&scene, reason);
	}
	found = of_pod(skb, &scene, DIRECTION_EGRESS);
	if (found == OF_POD) {
		/* In the pod's name: as if the pod had sent it. */
		skb->mark = MARK_FROM_PROXY;
		return bpf_redirect(scene.interface, BPF_F_INGRESS);
	}
	if (found == NOT_OF_POD) {
		scene.direction = direction;
		found = of_pod(skb, &scene, DIRECTION_INGRESS);
	}
	if (found == OF_POD)
		/* In the name of whom the pod speaks to. */
		return bpf_redirect_peer(scene.interface, 0);
	if (found == SHOT)
		return SHOT;
	/* The link's own, neighbour discovery and the like. */
	if (scene.packet.protocol == PROTOCOL_ICMPV6 && !is_error(&scene.packet)) {
		count_drop(DROP_PROXY_UNKNOWN, scene.length);
		return SHOT;
	}
	scene.verdict = 0;
	return dropped(&scene, DROP_PROXY_UNKNOWN);
}

/* Ingress of the host's end of the link of the proxy of ingress flows. */
SEC("classifier")
int from_ingress(struct __sk_buff *skb)
{
	return from_proxy(skb, DIRECTION_INGRESS);
}

/* The same of egress flows. */
SEC("classifier")
int from_egress(struct __sk_buff *skb)
{
	return from_proxy(skb, DIRECTION_EGRESS);
}

/* The two ends as the namespace sees them. Apart, because the compiler would join the reads of both families into reads of
 * computed addresses, which this kind of program may not do. */
static __attribute__((noinline)) void ends_ipv6(struct bpf_sk_lookup *ctx, struct address *remote, struct address *local)
{
	remote->words[0] = ctx->remote_ip6[0];
	remote->words[1] = ctx->remote_ip6[1];
	remote->words[2] = ctx->remote_ip6[2];
	remote->words[3] = ctx->remote_ip6[3];
	local->words[0] = ctx->local_ip6[0];
	local->words[1] = ctx->local_ip6[1];
	local->words[2] = ctx->local_ip6[2];
	local->words[3] = ctx->local_ip6[3];
}

static __attribute__((noinline)) void ends_ipv4(struct bpf_sk_lookup *ctx, struct address *remote, struct address *local)
{
	set_ipv4(remote, ctx->remote_ip4);
	set_ipv4(local, ctx->local_ip4);
}

/* Inside: whatever is of a flow that the proxy has goes to the one socket that takes its kind. */
static __always_inline int look_up(struct bpf_sk_lookup *ctx, __u32 direction)
{
	bool out = direction == DIRECTION_EGRESS;
	struct address remote = {}, local = {};
	struct connection_key key = {};
	struct connection *connection;
	struct endpoint *endpoint;
	struct bpf_sock *socket;
	__u32 index = 0;
	long error;

	if (ctx->family == FAMILY_IPV6)
		ends_ipv6(ctx, &remote, &local);
	else
		ends_ipv4(ctx, &remote, &local);
	key.own = out ? remote : local;
	key.peer = out ? local : remote;
	key.own_port = out ? bpf_ntohs(ctx->remote_port) : ctx->local_port;
	key.peer_port = out ? ctx->local_port : bpf_ntohs(ctx->remote_port);
	key.protocol = ctx->protocol;
	endpoint = owner_of(&key.own, &index);
	if (!endpoint)
		return SK_DROP;
	key.endpoint = endpoint->id;
	/* A client's packet: what a server says to a socket that is gone is nothing new. */
	connection = bpf_map_lookup_elem(&connections, &key);
	if (!connection || connection->direction != direction || (connection->judged & 255) != VERDICT_REDIRECT)
		return SK_DROP;
	index = ctx->family == FAMILY_IPV6 ? LISTENER_IPV6 : 0;
	if (ctx->protocol == PROTOCOL_UDP)
		index |= LISTENER_UDP;
	if (out)
		index |= LISTENER_EGRESS;
	socket = bpf_map_lookup_elem(&listeners, &index);
	if (!socket)
		return SK_DROP;
	/* Among those of its group, the kernel chooses by the four-tuple: always the same. */
	error = bpf_sk_assign(ctx, socket, 0);
	bpf_sk_release(socket);
	return error ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int lookup_ingress(struct bpf_sk_lookup *ctx)
{
	return look_up(ctx, DIRECTION_INGRESS);
}

SEC("sk_lookup")
int lookup_egress(struct bpf_sk_lookup *ctx)
{
	return look_up(ctx, DIRECTION_EGRESS);
}
