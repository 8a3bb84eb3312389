/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Packets that may open a flow, and which those are. */
#pragma once

#include "flow.h"
#include "backend.h"

/* Who sent a packet that opens a flow to a pod. Returns why it is dropped. */
GLOBAL int origin_of(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene)
{
	const struct packet *packet;
	struct address destination;
	const struct endpoint *from;
	struct tuple tuple = {};
	__u32 sender_id = 0;
	bool known;

	if (!endpoint || !scene)
		return DROP_BROKEN;
	packet = &scene->packet;
	scene->other = packet->source;
	scene->origin = ORIGIN_FORWARDED;
	if (skb->ingress_ifindex == 0) {
		scene->origin = ORIGIN_OWN_NODE;
		return DROP_NONE;
	}
	known = tracked(skb, &tuple, 0) == TRACKED_ORIGINAL;
	if (known) {
		set_address(&scene->other, tuple.source, tuple.family);
		/* The address and port that a source was translated to may be another's the next time. */
		if (!same_address(&scene->other, &packet->source))
			scene->generation = BRIEF;
	}
	if (!is_own(endpoint, &scene->other))
		return DROP_NONE;
	from = sender(skb, packet);
	if (from)
		sender_id = from->id;
	if (sender_id != endpoint->id)
		return DROP_SPOOFED;
	scene->origin = ORIGIN_HAIRPIN;
	if (!known)
		return DROP_NONE;
	set_address(&destination, tuple.destination, tuple.family);
	if (same_address(&destination, &packet->destination) &&
	    (is_icmp(packet->protocol) || bpf_ntohs(tuple.destination_port) == packet->destination_port))
		scene->origin = ORIGIN_FORWARDED;
	return DROP_NONE;
}

/* Whether a packet is taken for the reply half of a flow: connection tracking knows that the pod has opened it, and only the gate
 * has forgotten it; or it may have been there before the gate was (DESIGN 7). If not, `scene` stays as it is. */
GLOBAL int adopt(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene)
{
	struct address other;
	struct tuple tuple = {};
	bool known;
	__u8 origin;

	if (!endpoint || !scene)
		return 0;
	if (scene->packet.protocol != PROTOCOL_TCP || is_opening(&scene->packet))
		return 0;
	known = scene->towards == DIRECTION_INGRESS && tracked(skb, &tuple, 0) == TRACKED_REPLY;
	if (!known && scene->now >= adopted_until())
		return 0;
	origin = scene->origin;
	other = scene->other;
	scene->direction = !scene->towards;
	scene->origin = ORIGIN_FORWARDED;
	scene->other = scene->key.peer;
	ask_about(endpoint, scene, &scene->other);
	/* Of one that is the proxy's from now on, it will know nothing, and reset it (DESIGN 6.5). */
	if (known || passes(scene->verdict) || scene->verdict == VERDICT_REDIRECT)
		return 1;
	scene->direction = scene->towards;
	scene->origin = origin;
	scene->other = other;
	return 0;
}

/* A packet of no flow that is known, of which `scene` says whom policy is asked about. `state` is that of a flow that was
 * adopted, of which it has been asked. */
GLOBAL int open_flow(const struct endpoint *endpoint, struct scene *scene, __u32 is_flow, __u32 state)
{
	const struct packet *packet;
	struct connection connection = {};
	__u32 verdict;
	bool answers = false, seen;

	if (!endpoint || !scene)
		return SHOT;
	packet = &scene->packet;
	if (is_icmp(packet->protocol) && is_flow) {
		query_of(packet, &answers);
		/* An answer that nobody asked for is judged as what it is, and opens nothing. */
		if (answers) {
			is_flow = 0;
			scene->key.query = 0;
		}
	}
	if (!state)
		ask_about(endpoint, scene, &scene->other);
	verdict = enforced(scene);
	/* The proxy can take a flow from its first packet on only; what is under way is not reset for a dry run. */
	seen = scene->seen && !state && (packet->protocol != PROTOCOL_TCP || is_opening(packet));
	if ((scene->verdict == VERDICT_REDIRECT || seen) &&
	    has_listener(scene->direction, packet->protocol, scene->ether_type)) {
		/* A dry run too, as long as there is somebody to tell what would become of its requests. */
		verdict = VERDICT_REDIRECT;
		state |= CONNECTION_PROXIED;
		if (seen)
			state |= CONNECTION_SEEN;
	} else if (!passes(verdict)) {
		return dropped(scene, reason_of(scene));
	}
	if (scene->decision)
		count_decision(scene->decision, scene->length);
	if (packet->protocol == PROTOCOL_TCP) {
		if (packet->flags & TCP_RST)
			is_flow = 0;
		if (packet->flags & TCP_FIN)
			state |= scene->direction == scene->towards ? CONNECTION_FIN : CONNECTION_FIN_BACK;
		if (!is_opening(packet) && !(state & CONNECTION_ADOPTED))
			state |= CONNECTION_MIDSTREAM;
	}
	if (is_flow) {
		connection.judged = scene->revision << JUDGED_REVISION_SHIFT | verdict;
		connection.expires = scene->now + timeout(packet->protocol, state);
		connection.decision = scene->decision;
		connection.state = state;
		if (scene->direction == DIRECTION_INGRESS)
			connection.other = scene->other;
		connection.direction = scene->direction;
		connection.origin = scene->origin;
		connection.basis = scene->basis;
		if (bpf_map_update_elem(&connections, &scene->key, &connection, BPF_ANY))
			return dropped(scene, DROP_CONNECTIONS_FULL);
	}
	if (same_address(&scene->other, &scene->key.peer))
		scene->other = (struct address){};
	report(scene, EVENT_FLOW, DROP_NONE);
	return state & CONNECTION_PROXIED ? STEERED : PASS;
}

/* A flow of a dry run whose proxy is gone: it passes, as if the proxy had never been there. */
static __always_inline bool is_stranded(const struct endpoint *endpoint, const struct scene *scene,
					const struct connection *connection)
{
	const struct packet *packet = &scene->packet;

	return connection->state & CONNECTION_PROXIED &&
	       (endpoint->flags & ENDPOINT_AUDIT || connection->state & CONNECTION_SEEN) &&
	       connection->direction == scene->towards && (packet->protocol == PROTOCOL_UDP || is_opening(packet)) &&
	       !has_listener(connection->direction, packet->protocol, scene->ether_type);
}

/* Whether a packet of a flow's key begins another. */
static __always_inline bool is_another(const struct endpoint *endpoint, const struct scene *scene,
				       const struct connection *connection)
{
	if (connection->expires <= scene->now || is_stranded(endpoint, scene, connection))
		return true;
	/* From the side that did not open the flow it is another flow, whatever was let pass of this one; on a flow that has
	 * begun it is the next of that side. */
	return is_opening(&scene->packet) &&
	       (connection->direction != scene->towards ||
		connection->state & (CONNECTION_ANSWERED | CONNECTION_FIN | CONNECTION_FIN_BACK | CONNECTION_ADOPTED |
				     CONNECTION_RESET | CONNECTION_MIDSTREAM));
}

/* Whether a packet to the pod is not of the flow of its key, of which policy was asked: its sender is another than the one who
 * opened that flow (connection tracking, which forgets sooner, may have given the address and port of a translated source
 * away), or has opened what is taken for a flow of the pod. */
static __always_inline bool is_of_another(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene,
					  const struct connection *connection)
{
	struct tuple tuple = {};

	if (scene->towards != DIRECTION_INGRESS)
		return false;
	/* What the pod sends on a flow that the gate has forgotten looks like one that it opens. */
	if (connection->direction != DIRECTION_INGRESS)
		return connection->state & CONNECTION_MIDSTREAM && tracked(skb, &tuple, 0) == TRACKED_ORIGINAL;
	return origin_of(skb, endpoint, scene) || scene->origin != connection->origin ||
	       !same_address(&scene->other, &connection->other);
}

/* A packet that may be of a flow. */
GLOBAL int judge_flow(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene, __u32 is_flow)
{
	struct connection *connection;
	bool lives, of_another = false;
	__u32 state = 0;
	int reason;

	if (!endpoint || !scene)
		return SHOT;
	if (is_flow) {
		connection = bpf_map_lookup_elem(&connections, &scene->key);
		lives = connection && !is_another(endpoint, scene, connection);
		of_another = lives && is_of_another(skb, endpoint, scene, connection);
		if (lives && !of_another) {
			reason = DROP_NONE;
			if (scene->towards == DIRECTION_INGRESS && endpoint->egress && has_ports(scene->packet.protocol) &&
			    connection->direction == DIRECTION_EGRESS && is_deferred(connection))
				reason = judge_answer(skb, endpoint, scene, connection);
			return reason ? dropped(scene, reason) : follow_flow(endpoint, scene, connection);
		}
	}
	scene->direction = scene->towards;
	scene->origin = ORIGIN_FORWARDED;
	scene->other = scene->key.peer;
	if (scene->towards == DIRECTION_INGRESS) {
		reason = origin_of(skb, endpoint, scene);
		if (reason)
			return dropped(scene, reason);
	}
	if (!of_another && adopt(skb, endpoint, scene))
		state = CONNECTION_ADOPTED | CONNECTION_ANSWERED;
	return open_flow(endpoint, scene, is_flow, state);
}
