/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The lookups of `Image::gate` in policy-chain/core/src/compile/image.rs, in its order. Each found pointer becomes a number
 * at once: older verifiers take no two that may be null. */
#pragma once

#include "common.h"

enum {
	IDENTITY_ANY = 0,
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_FRONTEND = 3,
};

/* What is asked; `struct scene` takes the answer. */
struct question {
	struct address peer;
	__u16 port;
	__u8 protocol;
	__u8 direction;
	__u8 origin;
	/* The peer is where the service proxy sent the packet, which translates nothing twice. */
	__u8 backend;
	__u16 unused;
};

static __always_inline __u32 identity_of(const struct address *address)
{
	struct address_prefix key = { .bits = 128, .address = *address };
	__u32 *identity;

	identity = bpf_map_lookup_elem(&names, &key);
	if (identity)
		return *identity;
	identity = bpf_map_lookup_elem(&ipcache, &key);
	return identity ? *identity : IDENTITY_WORLD;
}

/* 0: it has none. */
static __always_inline __u32 row_of(__u32 policy, __u32 identity, __u32 otherwise)
{
	struct peer key = { .policy = policy, .identity = identity };
	__u32 *row;

	row = bpf_map_lookup_elem(&peers, &key);
	if (row)
		return *row;
	key.identity = otherwise;
	row = bpf_map_lookup_elem(&peers, &key);
	return row ? *row : 0;
}

static __always_inline int answer(struct scene *scene, __u32 verdict, __u32 basis)
{
	scene->verdict = verdict;
	scene->basis = basis;
	scene->decision = 0;
	scene->seen = 0;
	return 0;
}

static __always_inline int decide(struct scene *scene, __u32 row, const struct question *question)
{
	struct row_prefix key = {
		.bits = 56,
		.of = { .row = row, .protocol = question->protocol, .port = { question->port >> 8, question->port & 255 } },
	};
	struct decision *found;
	__u32 *number;
	__u32 decision;

	answer(scene, VERDICT_DENY, BASIS_BROKEN);
	number = bpf_map_lookup_elem(&rows, &key);
	if (!number)
		return 0;
	decision = *number;
	found = bpf_map_lookup_elem(&decisions, &decision);
	if (!found)
		return 0;
	scene->decision = decision;
	scene->basis = BASIS_DECISION;
	scene->verdict = scene->audit ? found->full : found->verdict;
	scene->seen = found->full == VERDICT_REDIRECT &&
		      (scene->verdict == VERDICT_ALLOW || scene->verdict == VERDICT_DEFER);
	return 0;
}

GLOBAL int ask(const struct endpoint *endpoint, const struct question *question, struct scene *scene)
{
	bool ingress, own_node;
	__u32 policy, identity = 0, row;

	if (!endpoint || !question || !scene)
		return 0;
	ingress = question->direction == DIRECTION_INGRESS;
	own_node = ingress && question->origin == ORIGIN_OWN_NODE;
	policy = ingress ? endpoint->ingress : endpoint->egress;

	if (!no_address(&question->peer)) {
		for (__u32 i = 0; i < ENDPOINT_ADDRESSES; i++) {
			const struct own_address *own = &endpoint->addresses[i];

			if (!same_address(&own->address, &question->peer))
				continue;
			if (question->origin != ORIGIN_HAIRPIN)
				return answer(scene, VERDICT_ALLOW, BASIS_OWN_ADDRESS);
			row = ingress ? own->ingress : own->egress;
			if (row == 0)
				return answer(scene, VERDICT_ALLOW, BASIS_NO_POLICY);
			return decide(scene, row, question);
		}
	}
	if (!ingress && !question->backend) {
		struct frontend key = {
			.address = question->peer, .port = question->port, .protocol = question->protocol,
		};
		__u32 *found = bpf_map_lookup_elem(&frontends, &key);

		if (found)
			identity = *found;
	}
	if (policy == 0) {
		if (identity)
			return answer(scene, VERDICT_DEFER, BASIS_SERVICE);
		return answer(scene, VERDICT_ALLOW, own_node ? BASIS_OWN_NODE : BASIS_NO_POLICY);
	}
	if (identity)
		row = row_of(policy, identity, IDENTITY_FRONTEND);
	else if (own_node)
		row = row_of(policy, IDENTITY_HOST, IDENTITY_ANY);
	else
		row = row_of(policy, identity_of(&question->peer), IDENTITY_ANY);
	if (row == 0)
		return answer(scene, VERDICT_DENY, BASIS_BROKEN);
	return decide(scene, row, question);
}

/* How often an endpoint is asked that is written anew meanwhile. */
#define JUDGE_TRIES 2

/* Whether the first packet of a flow passes: verdict, basis and decision go to the scene. */
GLOBAL int judge(const struct endpoint *endpoint, const struct question *question, struct scene *scene)
{
	const struct endpoint *now;

	if (!endpoint || !question || !scene)
		return 0;
	for (__u32 i = 0; i < JUDGE_TRIES; i++) {
		scene->revision = *(const volatile __u64 *)&endpoint->revision;
		scene->audit = endpoint->flags & ENDPOINT_AUDIT ? 1 : 0;
		ask(endpoint, question, scene);
		/* Where an entry is replaced, the kernel may give its memory to another one at once: what was read, also before
		 * this was called, may be that one's. */
		now = bpf_map_lookup_elem(&endpoints, &scene->holder);
		if (!now)
			break;
		if (now == endpoint && *(const volatile __u32 *)&now->id == scene->endpoint &&
		    *(const volatile __u64 *)&now->revision == scene->revision)
			return 0;
		endpoint = now;
	}
	scene->audit = 0;
	answer(scene, VERDICT_DENY, BASIS_BROKEN);
	/* No endpoint's: what is remembered of this answer is judged again with the next packet. */
	scene->revision = 0;
	return 0;
}
