/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* From a frame to what its headers say. */
#pragma once

#include "common.h"

/* How `parse` is asked: IPv6, and the packet that an ICMP error quotes, which is cut short. */
enum {
	PARSE_IPV6 = 1,
	PARSE_QUOTED = 2,
};

/* Extension headers before the transport header, at most; the longest chain of RFC 8200 has 7. */
#define EXTENSIONS 8

enum {
	EXTENSION_HOPS = 0,
	EXTENSION_ROUTING = 43,
	EXTENSION_FRAGMENT = 44,
	EXTENSION_AUTHENTICATION = 51,
	EXTENSION_DESTINATION = 60,
	EXTENSION_MOBILITY = 135,
	EXTENSION_HOST_IDENTITY = 139,
	EXTENSION_SHIM6 = 140,
};

struct ipv4_header {
	__u8 version_and_length;
	__u8 service;
	__be16 total;
	__be16 identification;
	__be16 fragment;
	__u8 hops;
	__u8 protocol;
	__be16 checksum;
	__be32 source;
	__be32 destination;
};

struct ipv6_header {
	__u8 version;
	__u8 flow[3];
	__be16 payload;
	__u8 next;
	__u8 hops;
	struct address source;
	struct address destination;
};

static __always_inline bool is_extension(__u8 next)
{
	switch (next) {
	case EXTENSION_HOPS:
	case EXTENSION_ROUTING:
	case EXTENSION_FRAGMENT:
	case EXTENSION_AUTHENTICATION:
	case EXTENSION_DESTINATION:
	case EXTENSION_MOBILITY:
	case EXTENSION_HOST_IDENTITY:
	case EXTENSION_SHIM6:
		return true;
	default:
		return false;
	}
}

/* IPv4 options: a source route sends the packet on to where nobody judged it. */
GLOBAL int parse_options(struct __sk_buff *skb, __u32 at, __u32 end)
{
	__u8 option[2];

	for (int i = 0; i < 40; i++) {
		if (at >= end)
			return DROP_NONE;
		if (bpf_skb_load_bytes(skb, at, option, 1))
			return DROP_MALFORMED;
		if (option[0] == 0)
			return DROP_NONE;
		if (option[0] == 1) {
			at++;
			continue;
		}
		/* LSRR, SSRR (RFC 791) */
		if (option[0] == 131 || option[0] == 137)
			return DROP_SOURCE_ROUTE;
		if (bpf_skb_load_bytes(skb, at + 1, option + 1, 1) || option[1] < 2)
			return DROP_MALFORMED;
		at += option[1];
	}
	return DROP_NONE;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *packet, __u32 base, __u32 limit,
				      bool quoted)
{
	struct ipv4_header ip;
	__u32 header, total, available, fragment;

	if (limit < base + sizeof(ip) || bpf_skb_load_bytes(skb, base, &ip, sizeof(ip)))
		return DROP_MALFORMED;
	header = (ip.version_and_length & 15) * 4;
	if (ip.version_and_length >> 4 != 4 || header < sizeof(ip))
		return DROP_MALFORMED;
	available = limit - base;
	total = bpf_ntohs(ip.total);
	/* Segments that the card or the stack will cut may be longer than the field holds. */
	if (total == 0 && !quoted && skb->gso_size)
		total = available;
	if (total < header || available < header || (total > available && !quoted))
		return DROP_MALFORMED;
	if (header > sizeof(ip)) {
		int reason = parse_options(skb, base + sizeof(ip), base + header);

		if (reason)
			return reason;
	}
	fragment = bpf_ntohs(ip.fragment);
	packet->part = fragment & 0x1fff ? PART_LATER : fragment & 0x2000 ? PART_FIRST : PART_WHOLE;
	packet->identification = ip.identification;
	packet->protocol = ip.protocol;
	packet->hops = ip.hops;
	packet->transport = base + header;
	packet->room = (total < available ? total : available) - header;
	set_ipv4(&packet->source, ip.source);
	set_ipv4(&packet->destination, ip.destination);
	/* RFC 3128: what lies over the header that the first fragment showed. */
	if (packet->part == PART_LATER && ip.protocol == PROTOCOL_TCP && (fragment & 0x1fff) < 3)
		return DROP_FRAGMENT;
	return DROP_NONE;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *packet, __u32 base, __u32 limit,
				      bool quoted)
{
	struct ipv6_header ip;
	__u32 at = base + sizeof(ip), end, available;
	bool fragmented = false;
	__u8 next;

	if (limit < base + sizeof(ip) || bpf_skb_load_bytes(skb, base, &ip, sizeof(ip)))
		return DROP_MALFORMED;
	/* RFC 4291 2.5.5.2 addresses stand for IPv4 in the maps, and on no wire. */
	if (ip.version >> 4 != 6 || is_mapped(&ip.source) || is_mapped(&ip.destination))
		return DROP_MALFORMED;
	available = limit - base;
	end = bpf_ntohs(ip.payload) + sizeof(ip);
	/* As for IPv4; a jumbogram (RFC 2675) has no length there either. */
	if (ip.payload == 0 && !quoted && (skb->gso_size || ip.next == EXTENSION_HOPS))
		end = available;
	if (end > available) {
		if (!quoted)
			return DROP_MALFORMED;
		end = available;
	}
	end += base;
	packet->source = ip.source;
	packet->destination = ip.destination;
	packet->hops = ip.hops;
	packet->part = PART_WHOLE;
	next = ip.next;
	for (int i = 0; is_extension(next); i++) {
		__u8 header[8];
		__u32 length;

		if (i == EXTENSIONS || bpf_skb_load_bytes(skb, at, header, sizeof(header)))
			return packet->part == PART_FIRST ? DROP_FRAGMENT : DROP_MALFORMED;
		length = (header[1] + 1) * 8;
		if (next == EXTENSION_FRAGMENT) {
			__u32 fragment = header[2] << 8 | header[3];

			if (fragmented)
				return DROP_MALFORMED;
			fragmented = true;
			length = 8;
			packet->part = fragment & 0xfff8 ? PART_LATER : fragment & 1 ? PART_FIRST : PART_WHOLE;
			/* As for IPv4: what could lie over a TCP header. Only the first one says whether it is TCP. */
			if (packet->part == PART_LATER && (fragment & 0xfff8) < 24)
				return DROP_FRAGMENT;
			__builtin_memcpy(&packet->identification, header + 4, 4);
		} else if (next == EXTENSION_ROUTING && header[3] != 0) {
			return DROP_SOURCE_ROUTE;
		} else if (next == EXTENSION_AUTHENTICATION) {
			length = (header[1] + 2) * 4;
		}
		next = header[0];
		at += length;
		if (packet->part == PART_LATER)
			break;
	}
	packet->protocol = next;
	packet->transport = at;
	/* RFC 7112: the first fragment has all headers. */
	if (at > end)
		return packet->part == PART_FIRST ? DROP_FRAGMENT : DROP_MALFORMED;
	packet->room = end - at;
	return DROP_NONE;
}

/* Bytes of a transport header without which it says too little; of a quoted one RFC 792 promises 8. */
static __always_inline __u32 transport_header(__u8 protocol, bool quoted)
{
	switch (protocol) {
	case PROTOCOL_TCP:
		return quoted ? 8 : 20;
	case PROTOCOL_SCTP:
		return quoted ? 8 : 12;
	case PROTOCOL_UDP:
	case PROTOCOL_ICMP:
	case PROTOCOL_ICMPV6:
		return 8;
	default:
		return 0;
	}
}

static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *packet, bool quoted)
{
	__u32 header = transport_header(packet->protocol, quoted);
	__u16 words[4];

	if (packet->part == PART_LATER || header == 0)
		return DROP_NONE;
	if (packet->room < header || bpf_skb_load_bytes(skb, packet->transport, words, sizeof(words)))
		return packet->part == PART_FIRST ? DROP_FRAGMENT : DROP_MALFORMED;
	switch (packet->protocol) {
	case PROTOCOL_ICMP:
	case PROTOCOL_ICMPV6:
		packet->flags = *(__u8 *)words;
		packet->source_port = packet->destination_port = bpf_ntohs(words[2]);
		return DROP_NONE;
	}
	packet->source_port = bpf_ntohs(words[0]);
	packet->destination_port = bpf_ntohs(words[1]);
	if (quoted)
		return DROP_NONE;
	/* The flags of TCP; SCTP's first chunk, if there is one. */
	if (packet->protocol == PROTOCOL_TCP)
		bpf_skb_load_bytes(skb, packet->transport + 13, &packet->flags, 1);
	else if (packet->protocol == PROTOCOL_SCTP && packet->room > 12)
		bpf_skb_load_bytes(skb, packet->transport + 12, &packet->flags, 1);
	return DROP_NONE;
}

/* The whole grammar. `base` is where the IP header is, `limit` where the bytes end that may be its packet. Returns why the packet is dropped, or DROP_NONE. */
GLOBAL int parse(struct __sk_buff *skb, struct packet *packet, __u32 base, __u32 limit, __u32 how)
{
	bool quoted = how & PARSE_QUOTED;
	int reason;

	if (!packet)
		return DROP_MALFORMED;
	packet->identification = 0;
	packet->source_port = 0;
	packet->destination_port = 0;
	packet->flags = 0;
	if (how & PARSE_IPV6)
		reason = parse_ipv6(skb, packet, base, limit, quoted);
	else
		reason = parse_ipv4(skb, packet, base, limit, quoted);
	return reason ? reason : parse_transport(skb, packet, quoted);
}

/*
 * The headers of a packet in pages are brought to where `parse_plain` reads: Ethernet, IP without options, and what is read of
 * TCP. Not a byte more: TCP keeps its payload in pages and its headers apart, of clones of which pulling makes copies.
 */
static __always_inline void pull(struct __sk_buff *skb)
{
	__u32 linear = (long)skb->data_end - (long)skb->data;
	__u32 wanted = ETHERNET_HEADER + (skb->protocol == bpf_htons(TYPE_IPV6) ? 40 : 20) + 14;

	if (linear < wanted && linear < skb->len)
		bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted);
}

/* The packets that there are most of: whole, without options, TCP or UDP. Anything else is for `parse`. */
static __always_inline bool parse_plain(struct __sk_buff *skb, struct packet *packet, __u32 ether_type)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const __u8 *transport;
	__u32 room;

	if (ether_type == TYPE_IPV4) {
		const struct ipv4_header *ip = data + ETHERNET_HEADER;
		__u32 total;

		transport = (void *)(ip + 1);
		if ((void *)(transport + 14) > end || ip->version_and_length != 0x45 ||
		    (ip->fragment & bpf_htons(0x3fff)))
			return false;
		total = bpf_ntohs(ip->total);
		if (total > skb->len - ETHERNET_HEADER || total < sizeof(*ip))
			return false;
		room = total - sizeof(*ip);
		packet->protocol = ip->protocol;
		packet->hops = ip->hops;
		set_ipv4(&packet->source, ip->source);
		set_ipv4(&packet->destination, ip->destination);
	} else if (ether_type == TYPE_IPV6) {
		const struct ipv6_header *ip = data + ETHERNET_HEADER;

		transport = (void *)(ip + 1);
		if ((void *)(transport + 14) > end || ip->version >> 4 != 6)
			return false;
		room = bpf_ntohs(ip->payload);
		if (room > skb->len - ETHERNET_HEADER - sizeof(*ip) || is_mapped(&ip->source) ||
		    is_mapped(&ip->destination))
			return false;
		packet->protocol = ip->next;
		packet->hops = ip->hops;
		packet->source = ip->source;
		packet->destination = ip->destination;
	} else {
		return false;
	}
	if (packet->protocol == PROTOCOL_TCP) {
		if (room < 20)
			return false;
		packet->flags = transport[13];
	} else if (packet->protocol == PROTOCOL_UDP) {
		if (room < 8)
			return false;
	} else {
		return false;
	}
	packet->source_port = bpf_ntohs(*(__u16 *)transport);
	packet->destination_port = bpf_ntohs(*(__u16 *)(transport + 2));
	packet->transport = (void *)transport - data;
	packet->room = room;
	return true;
}
