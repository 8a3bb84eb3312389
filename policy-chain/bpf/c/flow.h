/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Flows: which packet is of which, and what is remembered of one. */
#pragma once

#include "common.h"
#include "conntrack.h"
#include "judge.h"
#include "parse.h"
#include "report.h"

/* Seconds. As conntrack's where there is no reason for others: a flow that is translated is forgotten by both together. */
#define TIMEOUT_TCP_OPENING (120 * SECOND)
#define TIMEOUT_TCP (432000 * SECOND)
#define TIMEOUT_TCP_HALF_CLOSED (600 * SECOND)
#define TIMEOUT_TCP_CLOSED (60 * SECOND)
#define TIMEOUT_TCP_RESET (10 * SECOND)
/* Longer than a sender's longest wait for the next repetition (RFC 6298: 60 s, Linux: 120 s). */
#define TIMEOUT_TCP_DENIED (300 * SECOND)
#define TIMEOUT_UDP (30 * SECOND)
#define TIMEOUT_UDP_ANSWERED (180 * SECOND)
#define TIMEOUT_SCTP (300 * SECOND)
#define TIMEOUT_ICMP (30 * SECOND)
#define TIMEOUT_OTHER (600 * SECOND)
/* IPv6 waits for fragments so long (RFC 8200 4.5). */
#define TIMEOUT_FRAGMENTS (60 * SECOND)

static __always_inline __u64 timeout(__u8 protocol, __u32 state)
{
	switch (protocol) {
	case PROTOCOL_TCP:
		if (state & CONNECTION_RESET)
			return TIMEOUT_TCP_RESET;
		if ((state & (CONNECTION_FIN | CONNECTION_FIN_BACK)) == (CONNECTION_FIN | CONNECTION_FIN_BACK))
			return TIMEOUT_TCP_CLOSED;
		if (state & (CONNECTION_FIN | CONNECTION_FIN_BACK))
			return TIMEOUT_TCP_HALF_CLOSED;
		return state & CONNECTION_ANSWERED ? TIMEOUT_TCP : TIMEOUT_TCP_OPENING;
	case PROTOCOL_UDP:
		return state & CONNECTION_ANSWERED ? TIMEOUT_UDP_ANSWERED : TIMEOUT_UDP;
	case PROTOCOL_SCTP:
		return TIMEOUT_SCTP;
	case PROTOCOL_ICMP:
	case PROTOCOL_ICMPV6:
		return TIMEOUT_ICMP;
	default:
		return TIMEOUT_OTHER;
	}
}

/* An ICMP message that asks or answers: the type that asks, else 0. */
static __always_inline __u8 query_of(const struct packet *packet, bool *answers)
{
	__u8 type = packet->flags;

	*answers = false;
	if (packet->protocol == PROTOCOL_ICMP) {
		switch (type) {
		case 8: /* echo */
		case 13: /* timestamp */
		case 15: /* information */
		case 17: /* address mask */
			return type;
		case 0:
			*answers = true;
			return 8;
		case 14:
		case 16:
		case 18:
			*answers = true;
			return type - 1;
		}
	} else if (packet->protocol == PROTOCOL_ICMPV6) {
		if (type == 128)
			return type;
		if (type == 129) {
			*answers = true;
			return 128;
		}
	}
	return 0;
}

static __always_inline bool is_icmp(__u8 protocol)
{
	return protocol == PROTOCOL_ICMP || protocol == PROTOCOL_ICMPV6;
}

/* Whether an ICMP message is an error about a packet that it quotes. */
static __always_inline bool is_error(const struct packet *packet)
{
	__u8 type = packet->flags;

	if (packet->part == PART_LATER)
		return false;
	if (packet->protocol == PROTOCOL_ICMP)
		return type == 3 || type == 4 || type == 11 || type == 12;
	return packet->protocol == PROTOCOL_ICMPV6 && type >= 1 && type <= 4;
}

/* Whether a packet opens a flow and cannot be of one that is open: TCP's SYN, SCTP's INIT. */
static __always_inline bool is_opening(const struct packet *packet)
{
	if (packet->part == PART_LATER)
		return false;
	if (packet->protocol == PROTOCOL_TCP)
		return (packet->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	return packet->protocol == PROTOCOL_SCTP && packet->flags == 1;
}

/* The key of a packet that goes `towards`. False: it is of no flow, each one is judged. */
static __always_inline bool key_of(const struct packet *packet, __u32 towards, struct connection_key *key)
{
	bool out = towards == DIRECTION_EGRESS, answers;

	key->own = out ? packet->source : packet->destination;
	key->peer = out ? packet->destination : packet->source;
	key->protocol = packet->protocol;
	key->query = 0;
	key->query_direction = 0;
	key->unused = 0;
	key->own_port = out ? packet->source_port : packet->destination_port;
	key->peer_port = out ? packet->destination_port : packet->source_port;
	if (!is_icmp(packet->protocol))
		return true;
	key->query = query_of(packet, &answers);
	key->query_direction = answers ? !towards : towards;
	if (key->query_direction == DIRECTION_EGRESS)
		key->peer_port = 0;
	else
		key->own_port = 0;
	return key->query != 0;
}

/* The key of the flow of whose packet an ICMP error that goes `towards` tells: that packet went the other way. */
GLOBAL int quoted_key(struct __sk_buff *skb, const struct scene *scene, __u32 towards, struct connection_key *key)
{
	struct packet quoted = {};
	__u32 how = PARSE_QUOTED, end;

	if (!scene || !key)
		return 0;
	if (scene->ether_type == TYPE_IPV6)
		how |= PARSE_IPV6;
	end = scene->packet.transport + scene->packet.room;
	if (parse(skb, &quoted, scene->packet.transport + 8, end, how) || quoted.part == PART_LATER)
		return 0;
	/* An error goes to who sent the packet. */
	if (!same_address(&quoted.source, &scene->packet.destination))
		return 0;
	return key_of(&quoted, !towards, key);
}

/* The port that policy is asked for. */
static __always_inline __u16 judged_port(const struct connection_key *key, __u32 direction)
{
	return direction == DIRECTION_EGRESS ? key->peer_port : key->own_port;
}

/* What becomes of a packet with this verdict at a gate, the dry run considered. */
static __always_inline __u32 enforced(const struct scene *scene)
{
	if (scene->audit && (scene->verdict == VERDICT_DENY || scene->verdict == VERDICT_REDIRECT))
		return VERDICT_ALLOW;
	return scene->verdict;
}

static __always_inline bool passes(__u32 verdict)
{
	return verdict == VERDICT_ALLOW || verdict == VERDICT_DEFER;
}

/* Whether the proxy takes flows of this kind now. */
GLOBAL int has_listener(__u32 direction, __u32 protocol, __u32 ether_type)
{
	__u32 index = ether_type == TYPE_IPV6 ? LISTENER_IPV6 : 0;
	struct bpf_sock *socket;

	if (protocol == PROTOCOL_UDP)
		index |= LISTENER_UDP;
	else if (protocol != PROTOCOL_TCP)
		return 0;
	if (direction == DIRECTION_EGRESS)
		index |= LISTENER_EGRESS;
	socket = bpf_map_lookup_elem(&listeners, &index);
	if (!socket)
		return 0;
	bpf_sk_release(socket);
	return 1;
}

static __always_inline __u32 reason_of(const struct scene *scene)
{
	if (scene->verdict == VERDICT_REDIRECT)
		return DROP_NO_PROXY;
	return scene->basis == BASIS_BROKEN ? DROP_BROKEN : DROP_POLICY;
}

static __always_inline __u32 setting_flags(__u64 *adopt_until)
{
	__u32 zero = 0;
	struct settings *found = bpf_map_lookup_elem(&settings, &zero);

	*adopt_until = found ? found->adopt_until : 0;
	return found ? found->flags : 0;
}

/* The pod behind an interface: its endpoint, or of a bridge the owner of the packet's source. */
static __always_inline struct endpoint *behind(struct __sk_buff *skb, struct endpoint *found,
					       const struct packet *packet)
{
	struct address source = packet->source;
	struct tuple tuple = {};
	__u32 index, *owner;

	if (!(found->flags & ENDPOINT_BRIDGE))
		return found;
	if (tracked(skb, &tuple, 0) == TRACKED_ORIGINAL)
		set_address(&source, tuple.source, tuple.family);
	owner = bpf_map_lookup_elem(&owners, &source);
	if (!owner)
		return NULL;
	index = *owner;
	return bpf_map_lookup_elem(&endpoints, &index);
}

/* The endpoint that a forwarded packet comes from; null: it is not a pod of this node. */
static __always_inline struct endpoint *sender(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 index = skb->ingress_ifindex;
	struct endpoint *found;

	if (index == 0)
		return NULL;
	found = bpf_map_lookup_elem(&endpoints, &index);
	return found ? behind(skb, found, packet) : NULL;
}

/* Who sent a packet that opens a flow to a pod. Returns why it is dropped. */
static __always_inline int origin_of(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene)
{
	const struct packet *packet = &scene->packet;
	struct address destination;
	const struct endpoint *from;
	struct tuple tuple = {};
	__u32 sender_id = 0;
	bool known;

	scene->other = packet->source;
	scene->origin = ORIGIN_FORWARDED;
	if (skb->ingress_ifindex == 0) {
		scene->origin = ORIGIN_OWN_NODE;
		return DROP_NONE;
	}
	known = tracked(skb, &tuple, 0) == TRACKED_ORIGINAL;
	if (known)
		set_address(&scene->other, tuple.source, tuple.family);
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

static __always_inline void ask_about(const struct endpoint *endpoint, struct scene *scene, const struct address *peer)
{
	struct question question = {
		.peer = *peer,
		.port = judged_port(&scene->key, scene->direction),
		.protocol = scene->key.protocol,
		.direction = scene->direction,
		.origin = scene->origin,
	};

	if (is_icmp(scene->key.protocol))
		question.port = scene->key.query ? scene->key.query : scene->packet.flags;
	judge(endpoint, &question, scene);
}

/* A packet of no flow that is known. */
GLOBAL int open_flow(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene, __u32 is_flow)
{
	const struct packet *packet;
	struct connection connection = {};
	__u64 adopt_until;
	__u32 verdict, state = 0;
	bool answers = false;
	int reason;

	if (!endpoint || !scene)
		return SHOT;
	packet = &scene->packet;
	scene->direction = scene->towards;
	scene->origin = ORIGIN_FORWARDED;
	scene->other = scene->key.peer;
	if (scene->towards == DIRECTION_INGRESS) {
		reason = origin_of(skb, endpoint, scene);
		if (reason)
			return dropped(scene, reason);
	}
	if (is_icmp(packet->protocol) && is_flow) {
		query_of(packet, &answers);
		/* An answer that nobody asked for is judged as what it is, and opens nothing. */
		if (answers) {
			is_flow = 0;
			scene->key.query = 0;
		}
	}
	setting_flags(&adopt_until);
	if (packet->protocol == PROTOCOL_TCP && scene->now < adopt_until && !is_opening(packet)) {
		__u8 origin = scene->origin;
		struct address other = scene->other;

		scene->direction = !scene->towards;
		scene->origin = ORIGIN_FORWARDED;
		ask_about(endpoint, scene, &scene->key.peer);
		/* Of one that is the proxy's from now on, it will know nothing, and reset it (DESIGN 6.5). */
		if (passes(scene->verdict) || scene->verdict == VERDICT_REDIRECT) {
			state = CONNECTION_ADOPTED | CONNECTION_ANSWERED;
			scene->other = scene->key.peer;
			goto judged;
		}
		scene->direction = scene->towards;
		scene->origin = origin;
		scene->other = other;
	}
	ask_about(endpoint, scene, &scene->other);
judged:
	verdict = enforced(scene);
	if (scene->verdict == VERDICT_REDIRECT &&
	    has_listener(scene->direction, packet->protocol, scene->ether_type)) {
		/* A dry run too, as long as there is somebody to tell what would become of its requests. */
		verdict = VERDICT_REDIRECT;
		state |= CONNECTION_PROXIED;
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
	}
	if (is_flow) {
		connection.judged = endpoint->revision << JUDGED_REVISION_SHIFT | verdict;
		connection.expires = scene->now + timeout(packet->protocol, state);
		connection.decision = scene->decision;
		connection.state = state;
		if (scene->direction == DIRECTION_INGRESS)
			connection.other = scene->other;
		connection.proxy_port = scene->proxy_port;
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

/* A flow whose endpoint has moved on is judged again, in the flow's own direction. */
static __always_inline void judge_again(const struct endpoint *endpoint, struct scene *scene,
					struct connection *connection)
{
	__u32 before = connection->judged & 255, after;
	__u64 adopt_until;

	if (before != VERDICT_DENY && (setting_flags(&adopt_until) & SETTING_KEEP_ESTABLISHED)) {
		connection->judged = endpoint->revision << JUDGED_REVISION_SHIFT | before;
		return;
	}
	ask_about(endpoint, scene, scene->direction == DIRECTION_INGRESS ? &scene->other : &scene->key.peer);
	after = enforced(scene);
	/* The server knows another connection than the client: there is no way back. */
	if (connection->state & CONNECTION_PROXIED && passes(after))
		after = VERDICT_REDIRECT;
	connection->decision = scene->decision;
	connection->basis = scene->basis;
	connection->proxy_port = scene->proxy_port;
	/* Last: what is read beside it is only told, this is what packets pass by. */
	*(volatile __u64 *)&connection->judged = endpoint->revision << JUDGED_REVISION_SHIFT | after;
	if (scene->decision && after != VERDICT_DENY)
		count_decision(scene->decision, scene->length);
	if (before != after)
		report(scene, EVENT_CHANGED, DROP_NONE);
}

/* A packet of a known flow.
 *
 * Behind one that is proxied are two connections. The one with the client is what is written down of it, because the flow
 * ends with that one; the other only keeps it alive. At a pod's gate, the client's packets are of the first, and the answers
 * of the second; it is the other way round where they come from the proxy.
 *
 * A flow that was let pass directly and is the proxy's now goes there too. The proxy's namespace, which does not know it,
 * answers with a reset in the name of the other side, to whichever side speaks. */
GLOBAL int follow_flow(const struct endpoint *endpoint, struct scene *scene, struct connection *connection)
{
	const struct packet *packet;
	bool own, steered, of_client, closed = false;
	__u32 verdict, state, news = 0;

	if (!endpoint || !scene || !connection)
		return SHOT;
	packet = &scene->packet;
	own = connection->direction == scene->towards;
	state = connection->state;
	scene->direction = connection->direction;
	scene->origin = connection->origin;
	scene->basis = connection->basis;
	scene->decision = connection->decision;
	scene->other = connection->other;
	scene->audit = endpoint->flags & ENDPOINT_AUDIT ? 1 : 0;
	if (connection->judged >> JUDGED_REVISION_SHIFT != endpoint->revision)
		judge_again(endpoint, scene, connection);
	verdict = connection->judged & 255;
	scene->verdict = verdict;
	steered = verdict == VERDICT_REDIRECT;
	if (!passes(verdict) && !steered) {
		/* It stays denied as long as anyone tries: forgotten, it could be opened by what the other side repeats. */
		if (packet->protocol == PROTOCOL_TCP)
			connection->expires = scene->now + TIMEOUT_TCP_DENIED;
		else if (own)
			connection->expires = scene->now + timeout(packet->protocol, 0);
		return dropped(scene, reason_of(scene));
	}
	of_client = !steered || own != (scene->hook == HOOK_FROM_PROXY);
	if (!own && of_client)
		news |= CONNECTION_ANSWERED;
	if (packet->protocol == PROTOCOL_TCP && packet->part != PART_LATER && of_client) {
		/* A reset that the receiver does not believe, because it is forged or late, must not take the answers of the
		 * flow along: whatever comes after it shows that the flow lives. */
		if (packet->flags & TCP_RST) {
			closed = !(state & CONNECTION_RESET);
			news |= CONNECTION_RESET;
		} else if (state & CONNECTION_RESET) {
			state &= ~CONNECTION_RESET;
			__sync_fetch_and_and(&connection->state, ~CONNECTION_RESET);
		}
		if (packet->flags & TCP_FIN)
			news |= own ? CONNECTION_FIN : CONNECTION_FIN_BACK;
	}
	if (news & ~state) {
		closed |= (state | news) & CONNECTION_FIN && (state | news) & CONNECTION_FIN_BACK &&
			  news & (CONNECTION_FIN | CONNECTION_FIN_BACK) & ~state;
		state |= news;
		__sync_fetch_and_or(&connection->state, news);
	}
	connection->expires = scene->now + timeout(packet->protocol, state);
	if (closed)
		report(scene, EVENT_CLOSED, DROP_NONE);
	return steered ? STEERED : PASS;
}

/* A flow of a dry run whose proxy is gone: it passes, as if the proxy had never been there. */
static __always_inline bool is_stranded(const struct endpoint *endpoint, const struct scene *scene,
					const struct connection *connection)
{
	const struct packet *packet = &scene->packet;

	return connection->state & CONNECTION_PROXIED && endpoint->flags & ENDPOINT_AUDIT &&
	       connection->direction == scene->towards && (packet->protocol == PROTOCOL_UDP || is_opening(packet)) &&
	       !has_listener(connection->direction, packet->protocol, scene->ether_type);
}

/* What is to be looked at twice. */
GLOBAL int slow(struct __sk_buff *skb, const struct endpoint *endpoint, struct scene *scene, __u32 is_flow)
{
	struct connection *connection;
	bool own, fresh;

	if (!endpoint || !scene)
		return SHOT;
	if (!is_flow)
		return open_flow(skb, endpoint, scene, 0);
	connection = bpf_map_lookup_elem(&connections, &scene->key);
	if (!connection || connection->expires <= scene->now || is_stranded(endpoint, scene, connection))
		return open_flow(skb, endpoint, scene, 1);
	if (is_opening(&scene->packet)) {
		own = connection->direction == scene->towards;
		fresh = !(connection->state &
			  (CONNECTION_ANSWERED | CONNECTION_FIN | CONNECTION_FIN_BACK | CONNECTION_ADOPTED |
			   CONNECTION_RESET));
		/* From the side that did not open the flow it is another flow, whatever was let pass of this one; on a flow
		 * that has begun it is the next of that side. */
		if (!own || !fresh)
			return open_flow(skb, endpoint, scene, 1);
	}
	return follow_flow(endpoint, scene, connection);
}
