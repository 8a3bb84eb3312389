/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The second judgement (DESIGN 7): a flow to a Service was let pass its pod's gate untranslated. Where the packet shows its
 * backend, the same pod's egress policy is asked about that one. */
#pragma once

#include "flow.h"
#include "fragment.h"

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

/* Asks about `scene->other`, and remembers the answer in the flow, if there is one. Returns why the packet is dropped. */
GLOBAL int judge_backend(const struct endpoint *from, struct scene *scene, struct connection *connection)
{
	struct question question = {};
	__u32 verdict;

	if (!from || !scene)
		return DROP_BROKEN;
	question.direction = DIRECTION_EGRESS;
	question.backend = 1;
	question.peer = scene->other;
	question.port = scene->other_port;
	question.protocol = scene->key.protocol;
	question.origin = is_own(from, &scene->other) ? ORIGIN_HAIRPIN : ORIGIN_FORWARDED;
	scene->origin = question.origin;
	judge(from, &question, scene);
	verdict = enforced(scene);
	if (connection) {
		*(volatile __u64 *)&connection->backend_judged = 0;
		connection->other = scene->other;
		connection->other_port = scene->other_port;
		connection->backend_decision = scene->decision;
		*(volatile __u64 *)&connection->backend_judged = from->revision << JUDGED_REVISION_SHIFT | verdict;
	}
	if (verdict != VERDICT_ALLOW)
		return verdict == VERDICT_REDIRECT ? DROP_NO_PROXY
						   : scene->basis == BASIS_BROKEN ? DROP_BROKEN : DROP_BACKEND;
	if (scene->decision)
		count_decision(scene->decision, scene->length);
	report(scene, EVENT_BACKEND, DROP_NONE);
	return DROP_NONE;
}

/* A packet that pod `from` sent and the host forwards. Returns why it is dropped. */
GLOBAL int second(struct __sk_buff *skb, const struct endpoint *from, struct scene *scene)
{
	struct connection *connection;
	const struct packet *packet;
	struct tuple tuple = {};
	__u32 how, verdict;
	int reason;

	if (!from || !scene)
		return DROP_BROKEN;
	packet = &scene->packet;
	if (!has_ports(packet->protocol))
		return DROP_NONE;
	how = tracked(skb, &tuple, 0);
	if (how == TRACKED_REPLY)
		return DROP_NONE;
	scene->endpoint = from->id;
	scene->direction = DIRECTION_EGRESS;
	if (how == UNTRACKED) {
		/* Nothing is translated that is not tracked: this is the packet as the pod sent it. */
		if (packet->part == PART_LATER) {
			reason = later_fragment(&scene->packet, from->id, DIRECTION_EGRESS);
			if (reason)
				return reason;
		}
		key_of(packet, DIRECTION_EGRESS, &scene->key);
		scene->other_port = packet->destination_port;
	} else {
		set_address(&scene->key.own, tuple.source, tuple.family);
		set_address(&scene->key.peer, tuple.destination, tuple.family);
		scene->key.own_port = bpf_ntohs(tuple.source_port);
		scene->key.peer_port = bpf_ntohs(tuple.destination_port);
		scene->key.protocol = tuple.protocol;
		scene->other_port = packet->destination_port;
		if (packet->part == PART_LATER) {
			/* Who answers is whom it goes to. */
			if (tracked(skb, &tuple, 1) == UNTRACKED)
				return DROP_FRAGMENT;
			scene->other_port = bpf_ntohs(tuple.source_port);
		}
	}
	scene->key.endpoint = from->id;
	scene->other = packet->destination;
	connection = bpf_map_lookup_elem(&connections, &scene->key);
	if (connection && connection->expires > scene->now) {
		verdict = connection->judged & 255;
		if (connection->direction != DIRECTION_EGRESS || verdict != VERDICT_DEFER)
			return DROP_NONE;
		if (connection->backend_judged == (from->revision << JUDGED_REVISION_SHIFT | VERDICT_ALLOW) &&
		    connection->other_port == scene->other_port && same_address(&connection->other, &scene->other))
			return DROP_NONE;
		return judge_backend(from, scene, connection);
	}
	struct frontend key = {
		.address = scene->key.peer, .port = scene->key.peer_port, .protocol = scene->key.protocol,
	};

	/* Forgotten since it passed the pod's gate. */
	if (!bpf_map_lookup_elem(&frontends, &key))
		return DROP_NONE;
	return judge_backend(from, scene, NULL);
}

/* An answer to the pod of a deferred flow whose backend nobody has judged at this revision: it was not seen, as on a kernel
 * without netfilter programs when it is a process of the node, or the policy has changed since. Whoever answers is the
 * backend. Returns why the packet is dropped. */
GLOBAL int judge_answer(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene)
{
	struct connection *connection;
	struct tuple tuple = {};
	int reason;

	if (!endpoint || !scene)
		return DROP_BROKEN;
	if (!endpoint->egress || !has_ports(scene->packet.protocol) || is_opening(&scene->packet))
		return DROP_NONE;
	connection = bpf_map_lookup_elem(&connections, &scene->key);
	if (!connection || connection->expires <= scene->now || connection->direction != DIRECTION_EGRESS ||
	    (connection->judged & 255) != VERDICT_DEFER)
		return DROP_NONE;
	if (connection->backend_judged == (endpoint->revision << JUDGED_REVISION_SHIFT | VERDICT_ALLOW))
		return DROP_NONE;
	if (tracked(skb, &tuple, 1) != TRACKED_REPLY)
		return DROP_NONE;
	set_address(&scene->other, tuple.source, tuple.family);
	scene->other_port = bpf_ntohs(tuple.source_port);
	scene->direction = DIRECTION_EGRESS;
	reason = judge_backend(endpoint, scene, connection);
	if (!reason)
		scene->direction = scene->towards;
	return reason;
}

/* What the second judgement wrote down is of another endpoint than the gate's. */
static __always_inline void forget(struct scene *scene, __u32 endpoint)
{
	scene->endpoint = endpoint;
	scene->decision = 0;
	scene->verdict = 0;
	scene->basis = BASIS_NOTHING;
	scene->other = (struct address){};
	scene->other_port = 0;
	scene->audit = 0;
}
