/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TC egress of a tunnel device: only what comes from the tunnel's own address goes to its server,
 * even with every nft table flushed. The device has no Ethernet header: data begins with IPv4.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* In host byte order; written before the program is loaded. 0 lets nothing pass. */
const volatile __u32 tunnel_address = 0;

static __always_inline const struct iphdr *header(struct __sk_buff *skb)
{
	const struct iphdr *ip = (void *)(long)skb->data;

	return (void *)(ip + 1) > (void *)(long)skb->data_end ? NULL : ip;
}

SEC("tc")
int tunnel_source(struct __sk_buff *skb)
{
	const struct iphdr *ip = header(skb);

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_SHOT;
	if (!ip && !bpf_skb_pull_data(skb, sizeof(*ip)))
		ip = header(skb);
	if (!ip || ip->version != 4 || !tunnel_address)
		return TC_ACT_SHOT;
	return bpf_ntohl(ip->saddr) == tunnel_address ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
