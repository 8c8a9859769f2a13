/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs that judge nothing, for tests which show that the other layer holds alone.
 */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

/* The filter's own map, found by its pin. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} far_map SEC(".maps");

/* On a port: carries everything across. */
SEC("tc")
int open_wire(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	const __u32 *far = bpf_map_lookup_elem(&far_map, &ifindex);

	if (!far)
		return TC_ACT_SHOT;
	bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer(*far, 0);
}

/* On a tunnel device: lets every source pass. */
SEC("tc")
int pass_all(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_ACT_UNSPEC;
}

/* On a port: drops everything, to be swapped with `open_wire` or the filter during a flood. */
SEC("tc")
int cut_wire(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
