/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The second judgement (DESIGN 7): a flow to a Service was let pass its pod's gate untranslated. Where the packet shows its
 * backend, the same pod's egress policy is asked about that one. */
#pragma once

#include "flow.h"
#include "fragment.h"
#include "recent.h"

/* Of a bridge, the interface of the pod that has the packet's source; 0: it is of none. */
GLOBAL int port_of(struct __sk_buff *skb, const struct packet *packet)
{
	struct tuple tuple = {};
	struct address source;
	__u32 *owner;

	if (!packet)
		return 0;
	source = packet->source;
	if (tracked(skb, &tuple, 0) == TRACKED_ORIGINAL)
		set_address(&source, tuple.source, tuple.family);
	owner = bpf_map_lookup_elem(&owners, &source);
	return owner ? *owner : 0;
}

/* The pod behind an interface: its endpoint, or of a bridge the owner of the packet's source, whose `index` it becomes. */
static __always_inline struct endpoint *behind(struct __sk_buff *skb, struct endpoint *found,
					       const struct packet *packet, __u32 *index)
{
	if (!(found->flags & ENDPOINT_BRIDGE))
		return found;
	*index = port_of(skb, packet);
	return bpf_map_lookup_elem(&endpoints, index);
}

/* The endpoint that a forwarded packet comes from; null: it is not a pod of this node. */
static __always_inline struct endpoint *sender(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 index = skb->ingress_ifindex;
	struct endpoint *found;

	if (index == 0)
		return NULL;
	found = bpf_map_lookup_elem(&endpoints, &index);
	return found ? behind(skb, found, packet, &index) : NULL;
}

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

/* What the second judgement wrote down is of another endpoint than the gate's. */
static __always_inline void forget(struct scene *scene, __u32 endpoint)
{
	scene->endpoint = endpoint;
	scene->holder = scene->interface;
	scene->direction = scene->towards;
	scene->origin = ORIGIN_FORWARDED;
	scene->decision = 0;
	scene->verdict = 0;
	scene->basis = BASIS_NOTHING;
	scene->other = (struct address){};
	scene->other_port = 0;
	scene->audit = 0;
}

/* Whether an egress flow was let pass its pod's gate for its backend to be judged. One that the proxy has only so that a dry run
 * sees it, or because it has had it before, is what its decision says: the proxy need not know the backend (DNS by UDP), and must
 * open none that would be closed without it. */
GLOBAL int is_deferred(const struct connection *connection)
{
	__u32 verdict, decision;
	struct decision *found;

	if (!connection)
		return 0;
	verdict = connection->judged & 255;
	if (verdict != VERDICT_REDIRECT || !(connection->state & CONNECTION_PROXIED))
		return verdict == VERDICT_DEFER;
	decision = connection->decision;
	found = bpf_map_lookup_elem(&decisions, &decision);
	if (!found)
		return connection->state & CONNECTION_SEEN ? 1 : 0;
	return found->verdict == VERDICT_DEFER;
}

/* What is remembered of a judgement of a backend: the revision and the verdict, mixed with whom they are of. Two processors may
 * write down two backends of a flow at once; in one word, the judgement of one is never taken for the other's. */
static __always_inline __u64 backend_judgement(__u64 revision, __u32 verdict, const struct address *backend, __u16 port)
{
	__u64 mixed = ((__u64)backend->words[0] << 32 | backend->words[1]) * 0x9e3779b97f4a7c15ull;

	mixed = ((mixed ^ mixed >> 32) + ((__u64)backend->words[2] << 32 | backend->words[3])) * 0xbf58476d1ce4e5b9ull;
	mixed = ((mixed ^ mixed >> 29) + port) * 0x94d049bb133111ebull;
	return mixed ^ (revision << JUDGED_REVISION_SHIFT | verdict);
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
		connection->other = scene->other;
		connection->other_port = scene->other_port;
		connection->backend_decision = scene->decision;
		*(volatile __u64 *)&connection->backend_judged =
			backend_judgement(scene->revision, verdict, &scene->other, scene->other_port);
	}
	if (verdict != VERDICT_ALLOW)
		return verdict == VERDICT_REDIRECT ? DROP_NO_PROXY
						   : scene->basis == BASIS_BROKEN ? DROP_BROKEN : DROP_BACKEND;
	if (scene->decision)
		count_decision(scene->decision, scene->length);
	report(scene, EVENT_BACKEND, DROP_NONE);
	return DROP_NONE;
}

/* A packet that pod `from` sent and the host forwards. Returns why it is dropped. Where the next packet that
 * is like it might be another flow's, `scene->generation` becomes BRIEF. */
GLOBAL int second(struct __sk_buff *skb, const struct endpoint *from, struct scene *scene)
{
	__u64 current;
	struct connection *connection;
	const struct packet *packet;
	struct tuple tuple = {};
	__u32 how, generation;
	int reason;

	if (!from || !scene)
		return DROP_BROKEN;
	packet = &scene->packet;
	if (is_of_link(packet)) {
		/* The pod's gate lets pass what is for the link, and asks no policy about it. */
		scene->endpoint = from->id;
		scene->direction = DIRECTION_EGRESS;
		scene->verdict = VERDICT_DENY;
		key_of(packet, DIRECTION_EGRESS, &scene->key);
		return DROP_POLICY;
	}
	if (!has_ports(packet->protocol))
		return DROP_NONE;
	how = tracked(skb, &tuple, 0);
	if (how == TRACKED_REPLY)
		return DROP_NONE;
	generation = scene->generation;
	scene->generation = BRIEF;
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
	/* What is tracked as the pod's own is no answer, though there may be a flow to the pod of the same tuple. */
	if (connection && connection->expires > scene->now &&
	    (connection->direction == DIRECTION_EGRESS || how == UNTRACKED)) {
		current = from->revision << JUDGED_REVISION_SHIFT | VERDICT_ALLOW;
		if (connection->direction != DIRECTION_EGRESS || !is_deferred(connection)) {
			/* What the pod may send untranslated it may send so as well. */
			if (connection->direction != DIRECTION_EGRESS ||
			    (connection->judged == current && scene->key.peer_port == scene->other_port &&
			     same_address(&scene->key.peer, &scene->other)))
				scene->generation = generation;
			return DROP_NONE;
		}
		scene->generation = generation;
		if (connection->backend_judged ==
		    backend_judgement(from->revision, VERDICT_ALLOW, &scene->other, scene->other_port))
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
GLOBAL int judge_answer(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene,
			struct connection *connection)
{
	struct tuple tuple = {};
	int reason;

	if (!endpoint || !scene || !connection)
		return DROP_BROKEN;
	/* Where a process of the node is not seen to be the backend, the next answer may be another's. */
	if (!(setting_flags() & SETTING_LOCAL_INPUT))
		scene->generation = BRIEF;
	if (connection->backend_judged ==
	    backend_judgement(endpoint->revision, VERDICT_ALLOW, &connection->other, connection->other_port))
		return DROP_NONE;
	scene->generation = BRIEF;
	if (tracked(skb, &tuple, 1) != TRACKED_REPLY)
		return DROP_NONE;
	set_address(&scene->other, tuple.source, tuple.family);
	scene->other_port = bpf_ntohs(tuple.source_port);
	scene->direction = DIRECTION_EGRESS;
	reason = judge_backend(endpoint, scene, connection);
	if (!reason)
		forget(scene, endpoint->id);
	return reason;
}

/* A packet to a pod that the host forwards: what its sender, if that is a pod of this node, may send to whom a Service chose.
 * Returns why it is dropped. */
GLOBAL int judge_sender(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene)
{
	__u32 index = skb->ingress_ifindex;
	struct endpoint *found, *from;
	int reason;

	if (!endpoint || !scene)
		return DROP_BROKEN;
	found = bpf_map_lookup_elem(&endpoints, &index);
	if (!found)
		return DROP_NONE;
	/* All pods behind a bridge come by the same interface. */
	if (found->flags & ENDPOINT_BRIDGE)
		scene->generation = BRIEF;
	from = behind(skb, found, &scene->packet, &index);
	if (!from)
		return DROP_NONE;
	if (!from->egress)
		return is_still(from, index) ? DROP_NONE : DROP_BROKEN;
	scene->holder = index;
	reason = second(skb, from, scene);
	if (!reason) {
		forget(scene, endpoint->id);
		key_of(&scene->packet, scene->towards, &scene->key);
		scene->key.endpoint = endpoint->id;
	}
	return reason;
}
