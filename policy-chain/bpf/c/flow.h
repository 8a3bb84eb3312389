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

enum {
	ND_ROUTER_SOLICITATION = 133,
	ND_ROUTER_ADVERTISEMENT = 134,
	ND_NEIGHBOUR_SOLICITATION = 135,
	ND_NEIGHBOUR_ADVERTISEMENT = 136,
	ND_REDIRECT = 137,
	MLD_QUERY = 130,
	MLD_REPORT = 131,
	MLD_DONE = 132,
	MLD2_REPORT = 143,
};

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

/* Whether an ICMPv6 message is of the link, which no router forwards: neighbour discovery, multicast listeners. */
static __always_inline bool is_of_link(const struct packet *packet)
{
	__u8 type = packet->flags;

	return packet->protocol == PROTOCOL_ICMPV6 && packet->part != PART_LATER &&
	       ((type >= ND_ROUTER_SOLICITATION && type <= ND_REDIRECT) || (type >= MLD_QUERY && type <= MLD_DONE) ||
		type == MLD2_REPORT);
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

static __always_inline __u64 adopted_until(void)
{
	__u32 zero = 0;
	struct settings *found = bpf_map_lookup_elem(&settings, &zero);

	return found ? found->adopt_until : 0;
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

/* A flow whose endpoint has moved on is judged again, in the flow's own direction. */
static __always_inline void judge_again(const struct endpoint *endpoint, struct scene *scene,
					struct connection *connection)
{
	__u32 before = connection->judged & 255, after;
	bool datagrams = scene->key.protocol != PROTOCOL_TCP, leaves = false;

	/* What nobody has answered is not established, however often it is repeated. Of datagrams, the proxy judges each one by the
	 * rules of now. */
	if (before != VERDICT_DENY && connection->state & CONNECTION_ANSWERED &&
	    setting_flags() & SETTING_KEEP_ESTABLISHED && !(datagrams && before == VERDICT_REDIRECT)) {
		connection->judged = endpoint->revision << JUDGED_REVISION_SHIFT | before;
		return;
	}
	ask_about(endpoint, scene, scene->direction == DIRECTION_INGRESS ? &scene->other : &scene->key.peer);
	after = enforced(scene);
	if (connection->state & CONNECTION_PROXIED && passes(after)) {
		/* The server knows another connection than the client: there is no way back. Where datagrams are no concern of the
		 * proxy's any more, it has no rules for them and would drop them. */
		leaves = datagrams && scene->verdict != VERDICT_REDIRECT && !scene->seen;
		if (!leaves)
			after = VERDICT_REDIRECT;
		/* Only for a dry run: without the proxy, it passes. */
		if (scene->seen)
			__sync_fetch_and_or(&connection->state, CONNECTION_SEEN);
	}
	connection->decision = scene->decision;
	connection->basis = scene->basis;
	/* Last: what is read beside it is only told, this is what packets pass by. */
	*(volatile __u64 *)&connection->judged = scene->revision << JUDGED_REVISION_SHIFT | after;
	/* After it: without these bits, what is still to be redirected would be taken for judged by the proxy (is_deferred). */
	if (leaves)
		__sync_fetch_and_and(&connection->state, ~(CONNECTION_PROXIED | CONNECTION_SEEN));
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
