/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a frame at a port is: `parse` reads it once, everything after it asks `struct packet`.
 */
#ifndef CHAINCTL_PACKET_H
#define CHAINCTL_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "identity.h"

#define FRAGMENT_OFFSET 0x1fff
#define MORE_FRAGMENTS  0x2000
#define QUOTED_BYTES    8 /* what RFC 792 promises of the quoted packet's transport header */

/* RFC 792. The kernel's <linux/icmp.h> needs a C library for this very target. */
enum { ICMP_ECHOREPLY = 0, ICMP_DEST_UNREACH = 3, ICMP_ECHO = 8, ICMP_TIME_EXCEEDED = 11 };
struct icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id;
	__be16 sequence;
};

enum content { PLAIN, ECHO_REQUEST, ECHO_REPLY, ICMP_ERROR, OTHER_ICMP };

struct packet {
	struct verdict verdict;
	struct flow_key tuple; /* as it travels */
	struct flow_key quote; /* of an ICMP_ERROR: the packet it is about, as that travelled */
	__u32 far;
	__u32 length;
	__u16 id;
	bool more_fragments;
	bool later_fragment; /* has no ports */
	enum content content;
};

static __always_inline void read_addresses(struct flow_key *tuple, const struct iphdr *ip)
{
	tuple->source = bpf_ntohl(ip->saddr);
	tuple->destination = bpf_ntohl(ip->daddr);
	tuple->protocol = ip->protocol;
}

/* UDP and TCP begin alike. */
static __always_inline void read_ports(struct flow_key *tuple, const struct udphdr *ports)
{
	tuple->source_port = bpf_ntohs(ports->source);
	tuple->destination_port = bpf_ntohs(ports->dest);
}

static __always_inline void read_echo(struct flow_key *tuple, const struct icmp *icmp)
{
	tuple->source_port = tuple->destination_port = bpf_ntohs(icmp->id);
}

/* The packet an ICMP error is about; false when it cannot have been one of ours. */
static __always_inline bool read_quote(struct flow_key *quote, const struct iphdr *ip, void *end)
{
	const struct icmp *icmp = (void *)(ip + 1);

	if ((void *)(ip + 1) + QUOTED_BYTES > end)
		return false;
	if (ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(FRAGMENT_OFFSET))
		return false;
	read_addresses(quote, ip);
	if (quote->protocol == IPPROTO_TCP || quote->protocol == IPPROTO_UDP)
		read_ports(quote, (void *)(ip + 1));
	else if (quote->protocol == IPPROTO_ICMP &&
		 (icmp->type == ICMP_ECHO || icmp->type == ICMP_ECHOREPLY))
		read_echo(quote, icmp);
	else
		return quote->protocol != IPPROTO_ICMP;
	return true;
}

static __always_inline enum reason parse_icmp(struct packet *p, const struct icmp *icmp, void *end)
{
	if ((void *)(icmp + 1) > end)
		return DROP_SHORT;
	switch (icmp->type) {
	case ICMP_ECHO:
	case ICMP_ECHOREPLY:
		p->content = icmp->type == ICMP_ECHO ? ECHO_REQUEST : ECHO_REPLY;
		read_echo(&p->tuple, icmp);
		return UNDECIDED;
	case ICMP_DEST_UNREACH:
	case ICMP_TIME_EXCEEDED:
		p->content = ICMP_ERROR;
		if (p->more_fragments)
			return DROP_FRAGMENT;
		return read_quote(&p->quote, (void *)(icmp + 1), end) ? UNDECIDED : DROP_QUOTE;
	}
	p->content = OTHER_ICMP;
	return UNDECIDED;
}

/* The header after IPv4; `*size` is its length in bytes. */
static __always_inline enum reason parse_transport(struct packet *p, void *header, void *end,
						   __u32 *size)
{
	const struct tcphdr *tcp = header;

	*size = sizeof(struct udphdr);
	switch (p->tuple.protocol) {
	case IPPROTO_ICMP:
		return parse_icmp(p, header, end);
	case IPPROTO_TCP:
		if ((void *)(tcp + 1) > end)
			return DROP_SHORT;
		*size = tcp->doff * 4;
		read_ports(&p->tuple, header);
		return UNDECIDED;
	case IPPROTO_UDP:
		if (header + sizeof(struct udphdr) > end)
			return DROP_SHORT;
		read_ports(&p->tuple, header);
		return UNDECIDED;
	}
	return UNDECIDED;
}

/* How much of a frame is to be read. A local sender's headers alone are often in one piece, and to
 * ask for more than them would move bytes of every packet. */
static __always_inline __u32 bytes_to_read(const struct __sk_buff *skb)
{
	const struct iphdr *ip = (void *)(long)skb->data + ETH_HLEN;
	__u32 until_transport = ETH_HLEN + sizeof(*ip);

	if ((void *)(ip + 1) <= (void *)(long)skb->data_end) {
		if (ip->protocol == IPPROTO_UDP)
			return until_transport + sizeof(struct udphdr);
		if (ip->protocol == IPPROTO_TCP)
			return until_transport + sizeof(struct tcphdr);
	}
	return until_transport + sizeof(struct icmp) + sizeof(*ip) + QUOTED_BYTES;
}

/* Makes the headers readable. */
static __always_inline void gather_headers(struct __sk_buff *skb)
{
	__u32 wanted = bytes_to_read(skb);

	if (wanted > skb->len)
		wanted = skb->len;
	if ((void *)(long)skb->data + wanted > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, wanted);
}

static __always_inline bool is_vlan(const struct __sk_buff *skb)
{
	return skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) ||
	       skb->protocol == bpf_htons(ETH_P_8021AD);
}

static __always_inline enum reason parse(struct __sk_buff *skb, struct packet *p)
{
	enum reason reason = UNDECIDED;
	__u32 transport_size = 0;
	const struct iphdr *ip;
	__u16 fragment;
	void *end;

	p->verdict.port = skb->ifindex;
	p->length = skb->len - ETH_HLEN;
	if (is_vlan(skb))
		return DROP_VLAN;
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return DROP_NOT_IPV4;
	gather_headers(skb);
	ip = (void *)(long)skb->data + ETH_HLEN;
	end = (void *)(long)skb->data_end;
	if ((void *)(ip + 1) > end)
		return DROP_SHORT;
	if (ip->version != 4)
		return DROP_NOT_IPV4;
	if (ip->ihl != 5)
		return DROP_OPTIONS;
	read_addresses(&p->tuple, ip);
	if (bpf_ntohs(ip->tot_len) > p->length || bpf_ntohs(ip->tot_len) < sizeof(*ip))
		return DROP_SHORT;

	fragment = bpf_ntohs(ip->frag_off);
	p->id = bpf_ntohs(ip->id);
	p->more_fragments = fragment & MORE_FRAGMENTS;
	p->later_fragment = fragment & FRAGMENT_OFFSET;
	if (!p->later_fragment)
		reason = parse_transport(p, (void *)(ip + 1), end, &transport_size);
	/* What is still one piece here will be cut before a real wire: a piece has to fit. */
	if (skb->gso_size)
		p->length = sizeof(*ip) + transport_size + skb->gso_size;
	return reason;
}

#endif
