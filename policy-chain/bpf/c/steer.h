/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* From a pod's gate to the proxy of the flow's direction (DESIGN 8). */
#pragma once

#include <linux/if_packet.h>

#include "flow.h"

/* Sends a packet of a flow that the proxy has into its namespace, as it is: source and destination stay. What opens a flow,
 * or may be all of it, needs somebody who takes it; what goes on with one does not, because where the proxy is gone its
 * namespace answers TCP with a reset. */
GLOBAL int steer(struct __sk_buff *skb, struct scene *scene)
{
	const struct packet *packet;
	struct proxy *proxy;
	__u32 direction;
	__u8 mac[6];

	if (!scene)
		return SHOT;
	packet = &scene->packet;
	direction = scene->direction;
	proxy = bpf_map_lookup_elem(&proxies, &direction);
	if (!proxy || proxy->index == 0)
		return dropped(scene, DROP_NO_PROXY);
	if ((packet->protocol == PROTOCOL_UDP || is_opening(packet)) &&
	    !has_listener(direction, packet->protocol, scene->ether_type))
		return dropped(scene, DROP_NO_PROXY);
	if (scene->hook == HOOK_FROM_POD) {
		/* It need not have been for this interface: behind a bridge it was for the bridge. */
		bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(proxy->index, 0);
	}
	__builtin_memcpy(mac, proxy->mac, sizeof(mac));
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
		return dropped(scene, DROP_NO_PROXY);
	return bpf_redirect(proxy->index, 0);
}
