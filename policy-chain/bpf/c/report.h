/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What others are told: counters and events. */
#pragma once

#include "common.h"

static __always_inline void count_drop(__u32 reason, __u32 length)
{
	struct counter *counter = bpf_map_lookup_elem(&drops, &reason);

	if (counter) {
		counter->packets++;
		counter->bytes += length;
	}
}

/* Counts a judgement. */
static __always_inline void count_decision(__u32 decision, __u32 length)
{
	struct counter *counter = bpf_map_lookup_elem(&counters, &decision);
	struct counter first = {};

	if (!counter) {
		bpf_map_update_elem(&counters, &decision, &first, BPF_NOEXIST);
		counter = bpf_map_lookup_elem(&counters, &decision);
	}
	if (counter) {
		counter->packets++;
		counter->bytes += length;
	} else {
		count_drop(DROP_COUNTER_LOST, length);
	}
}

static __always_inline __u32 setting_flags(void)
{
	__u32 zero = 0;
	struct settings *found = bpf_map_lookup_elem(&settings, &zero);

	return found ? found->flags : 0;
}

/* Of the drops that come while a quarter of the ring is full, one of so many is told; of those beyond half of it, none: what
 * else happens finds room whatever is dropped, and a flood of drops costs little more than to count it. */
#define DROPS_SAMPLED 64

/* What the ring holds beside an event. */
#define RING_HEADER 8

/* The reader polls. It is woken once, when a quarter of the ring is full (a wake-up for each event costs 15 us a connection). */
GLOBAL int report(const struct scene *scene, __u32 kind, __u32 reason)
{
	__u64 size = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	__u64 ring = bpf_ringbuf_query(&events, BPF_RB_RING_SIZE);
	struct event *event = NULL;

	if (!scene || setting_flags() & SETTING_NO_EVENTS)
		return 0;
	if (kind != EVENT_DROP || size <= ring / 4 ||
	    (size <= ring / 2 && bpf_get_prandom_u32() % DROPS_SAMPLED == 0))
		event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_drop(DROP_EVENT_LOST, scene->length);
		return 0;
	}
	event->time = scene->now;
	event->endpoint = scene->endpoint;
	event->interface = scene->interface;
	event->decision = scene->decision;
	event->length = scene->length;
	event->own = scene->key.own;
	event->peer = scene->key.peer;
	event->other = scene->other;
	event->own_port = scene->key.own_port;
	event->peer_port = scene->key.peer_port;
	event->other_port = scene->other_port;
	event->ether_type = scene->ether_type;
	event->protocol = scene->packet.protocol;
	event->flags = scene->packet.flags;
	event->kind = kind;
	event->hook = scene->hook;
	event->direction = scene->direction;
	event->origin = scene->origin;
	event->verdict = scene->verdict;
	event->reason = reason;
	event->basis = scene->basis;
	event->audit = scene->audit;
	__builtin_memset(event->unused, 0, sizeof(event->unused));
	bpf_ringbuf_submit(event, size <= ring / 4 && size + sizeof(*event) + RING_HEADER > ring / 4 ? BPF_RB_FORCE_WAKEUP
												     : BPF_RB_NO_WAKEUP);
	return 0;
}

GLOBAL int dropped(const struct scene *scene, __u32 reason)
{
	if (!scene)
		return SHOT;
	count_drop(reason, scene->length);
	if (scene->decision)
		count_decision(scene->decision, scene->length);
	report(scene, EVENT_DROP, reason);
	return SHOT;
}
