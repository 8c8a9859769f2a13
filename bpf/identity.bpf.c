/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The identity filter: TC ingress of every port in the panel. It is the wire: what it allows it
 * carries to the port at the other end itself, and nothing else in the panel forwards anything.
 *
 * Reads as a packet travels: parse (packet.h), who is it, may it, conclude.
 */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "identity.h"
#include "maps.h"
#include "packet.h"

#define SECOND            1000000000ULL
#define TCP_LIFETIME      (7200 * SECOND)
#define OTHER_LIFETIME    (180 * SECOND)
#define FRAGMENT_LIFETIME (30 * SECOND) /* as long as Linux waits for the rest (ipfrag_time) */

/* --- who, and may it ------------------------------------------------------------------------- */

static __always_inline bool gate_is_open(__u32 gate, __u64 now)
{
	const __u64 *until = bpf_map_lookup_elem(&gate_map, &gate);

	return until && now < *until;
}

static __always_inline __u32 identify(__u32 scope, __u32 address)
{
	struct endpoint_key endpoint = {.scope = scope, .address = address};
	struct cidr_key cidr = {.prefix_length = 64, .scope = scope, .address = bpf_htonl(address)};
	const __u32 *identity = bpf_map_lookup_elem(&endpoint_map, &endpoint);

	if (!identity)
		identity = bpf_map_lookup_elem(&cidr_map, &cidr);
	return identity ? *identity : IDENTITY_UNKNOWN;
}

static __always_inline bool is_somebody(__u32 identity)
{
	return identity != IDENTITY_UNKNOWN && identity != IDENTITY_WORLD;
}

static __always_inline __u16 class_of(const struct flow_key *forward)
{
	__u32 port = forward->destination_port;
	const __u16 *class = bpf_map_lookup_elem(&port_class, &port);

	if (forward->protocol != IPPROTO_TCP && forward->protocol != IPPROTO_UDP)
		return 0;
	return class ? *class : 0;
}

static __always_inline const struct policy_rule *find_rule(__u32 scope, const struct packet *p,
							   const struct flow_key *forward)
{
	struct policy_key key = {
		.scope = scope,
		.source = p->verdict.source_identity,
		.destination = p->verdict.destination_identity,
	};
	const struct policy_rule *any = bpf_map_lookup_elem(&policy_map, &key), *finer = NULL;
	__u8 covered = any ? any->covers : 0;

	key.port_class = class_of(forward);
	key.protocol = forward->protocol;
	if (key.port_class && !(covered & COVERS_CLASSES))
		finer = bpf_map_lookup_elem(&policy_map, &key);
	key.port_class = 0;
	if (!finer && !(covered & COVERS_PROTOCOLS))
		finer = bpf_map_lookup_elem(&policy_map, &key);
	return finer ? finer : any;
}

/* --- flows ----------------------------------------------------------------------------------- */

static __always_inline struct flow_key turned(const struct flow_key *tuple)
{
	return (struct flow_key){
		.source = tuple->destination,
		.destination = tuple->source,
		.source_port = tuple->destination_port,
		.destination_port = tuple->source_port,
		.protocol = tuple->protocol,
	};
}

static __always_inline struct flow_key fragment_of(const struct packet *p)
{
	return (struct flow_key){
		.source = p->tuple.source,
		.destination = p->tuple.destination,
		.source_port = p->id,
		.protocol = p->tuple.protocol,
		.kind = FLOW_FRAGMENT,
	};
}

static __always_inline __u64 lifetime(const struct flow_key *key)
{
	if (key->kind == FLOW_FRAGMENT)
		return FRAGMENT_LIFETIME;
	return key->protocol == IPPROTO_TCP ? TCP_LIFETIME : OTHER_LIFETIME;
}

static __always_inline __u64 *recall(void *table, const struct flow_key *key, __u64 now)
{
	__u64 *seen = bpf_map_lookup_elem(table, key);

	return seen && now - *seen < lifetime(key) ? seen : NULL;
}

/* True when it was remembered already. Once a second is often enough to write. */
static __always_inline bool remember(void *table, const struct flow_key *key, __u64 now)
{
	__u64 *seen = recall(table, key, now);

	if (!seen)
		bpf_map_update_elem(table, key, &now, BPF_ANY);
	else if (now - *seen > SECOND)
		*seen = now;
	return seen;
}

static __always_inline enum reason judge_later_fragment(void *table, const struct packet *p,
							__u64 now)
{
	struct flow_key fragment = fragment_of(p);

	return recall(table, &fragment, now) ? PASS_FRAGMENT : DROP_FRAGMENT;
}

static __always_inline void remember_fragments(void *table, const struct packet *p, __u64 now)
{
	struct flow_key fragment = fragment_of(p);

	if (p->more_fragments)
		remember(table, &fragment, now);
}

/* --- judge, by the mode of the port ---------------------------------------------------------- */

static __always_inline enum reason judge_tuple(const struct port *port, struct packet *p)
{
	struct wire_key key = {
		.ifindex = p->verdict.port,
		.source = p->tuple.source,
		.destination = p->tuple.destination,
		.source_port = p->tuple.source_port,
		.destination_port = p->tuple.destination_port,
		.protocol = p->tuple.protocol,
		.fragment = p->later_fragment,
	};
	const struct wire *wire;

	if (port->address && port->address != p->tuple.source)
		return DROP_SPOOFED;
	if (key.protocol != IPPROTO_TCP && key.protocol != IPPROTO_UDP)
		return DROP_NO_WIRE;
	wire = bpf_map_lookup_elem(&wire_map, &key);
	if (!wire)
		return p->later_fragment ? DROP_FRAGMENT : DROP_NO_WIRE;
	p->verdict.rule = wire->rule;
	if (p->later_fragment)
		return PASS_FRAGMENT;
	return p->more_fragments && !(wire->flags & WIRE_FRAGMENTS) ? DROP_FRAGMENT : PASS_WIRE;
}

/* A client may send an ICMP error only to whom it talks, about what it got from there. */
static __always_inline bool answers_own_packet(const struct packet *p)
{
	return p->quote.source == p->tuple.destination && p->quote.destination == p->tuple.source;
}

static __always_inline enum reason judge_client(const struct port *port, struct packet *p)
{
	struct flow_key forward = p->content == ICMP_ERROR ? turned(&p->quote) : p->tuple;
	__u64 now = bpf_ktime_get_boot_ns();
	const struct policy_rule *rule;
	__u32 scope = port->scope;
	void *table;

	if (!gate_is_open(port->gate, now))
		return DROP_GATE;
	p->verdict.source_identity = identify(scope, p->tuple.source);
	if (!is_somebody(p->verdict.source_identity))
		return DROP_SOURCE;
	p->verdict.destination_identity = identify(scope, p->tuple.destination);
	table = bpf_map_lookup_elem(&flow_map, &scope);
	if (p->verdict.destination_identity == IDENTITY_UNKNOWN || !table)
		return DROP_DESTINATION;
	if (p->later_fragment)
		return judge_later_fragment(table, p, now);
	if (p->content == ECHO_REPLY || p->content == OTHER_ICMP)
		return DROP_ICMP;
	if (p->content == ICMP_ERROR && !answers_own_packet(p))
		return DROP_QUOTE;

	rule = find_rule(scope, p, &forward);
	if (!rule)
		return DROP_NO_RULE;
	p->verdict.rule = rule->rule;
	if (rule->deny && !rule->audit)
		return DROP_RULE;
	if (p->content == ICMP_ERROR)
		return recall(table, &forward, now) ? PASS_ICMP_ERROR : DROP_NO_FLOW;
	remember_fragments(table, p, now);
	if (remember(table, &forward, now))
		return rule->deny ? PASS_AUDITED : PASS_KNOWN;
	return rule->deny ? PASS_AUDITED : PASS_NEW;
}

static __always_inline enum reason judge_reply(const struct port *port, struct packet *p)
{
	struct flow_key forward = p->content == ICMP_ERROR ? p->quote : turned(&p->tuple);
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 scope = port->scope;
	void *table;

	if (!gate_is_open(port->gate, now))
		return DROP_GATE;
	p->verdict.destination_identity = identify(scope, p->tuple.destination);
	table = bpf_map_lookup_elem(&flow_map, &scope);
	if (!is_somebody(p->verdict.destination_identity) || !table)
		return DROP_DESTINATION;
	if (p->later_fragment)
		return judge_later_fragment(table, p, now);
	if (p->content == ECHO_REQUEST || p->content == OTHER_ICMP)
		return DROP_ICMP;
	/* Any router on the way may have sent the error, but only to whose packet it quotes. */
	if (p->content == ICMP_ERROR && p->quote.source != p->tuple.destination)
		return DROP_QUOTE;
	if (!recall(table, &forward, now))
		return DROP_NO_FLOW;
	remember_fragments(table, p, now);
	return p->content == ICMP_ERROR ? PASS_ICMP_ERROR : PASS_REPLY;
}

static __always_inline enum reason judge(struct __sk_buff *skb, struct packet *p)
{
	enum reason reason = parse(skb, p);
	__u32 ifindex = p->verdict.port;
	const struct port *port;
	const __u32 *far;

	if (reason != UNDECIDED)
		return reason;
	port = bpf_map_lookup_elem(&port_map, &ifindex);
	if (!port)
		return DROP_NO_PORT;
	p->verdict.source_identity = port->identity;
	far = bpf_map_lookup_elem(&far_map, &ifindex);
	if (!far)
		return DROP_NO_FAR_END;
	p->far = *far;
	if (p->length > port->far_mtu)
		return DROP_TOO_LONG;
	switch (port->mode) {
	case MODE_TUPLE:
		return judge_tuple(port, p);
	case MODE_CLIENT:
		return judge_client(port, p);
	case MODE_REPLY:
		return judge_reply(port, p);
	}
	return DROP_NO_PORT;
}

/* --- conclude -------------------------------------------------------------------------------- */

static __always_inline void count(__u32 reason)
{
	__u64 *packets = bpf_map_lookup_elem(&reason_map, &reason);

	if (packets)
		++*packets;
}

static __always_inline void report(struct packet *p, enum reason reason)
{
	struct verdict *v = &p->verdict;

	v->when = bpf_ktime_get_boot_ns();
	v->source = p->tuple.source;
	v->destination = p->tuple.destination;
	v->source_port = p->tuple.source_port;
	v->destination_port = p->tuple.destination_port;
	v->protocol = p->tuple.protocol;
	v->reason = reason;
	v->length = p->length;
	if (bpf_ringbuf_output(&verdict_map, v, sizeof(*v), 0))
		count(EVENT_LOST);
}

/* The only place that counts, reports and lets something pass. Not inlined, which also puts the
 * types of its arguments into the object's BTF. */
static __noinline int conclude(struct __sk_buff *skb, struct packet *p, enum reason reason)
{
	bool passes = reason >= PASS_FIRST && reason < DROP_FIRST;

	count(reason);
	if (!passes || reason == PASS_NEW || reason == PASS_AUDITED)
		report(p, reason);
	if (!passes)
		return TC_ACT_SHOT;
	/* Without neighbours a frame carries its sender's own MAC address, so its type says that
	 * it is for somebody else; redirection keeps the type. */
	bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer(p->far, 0);
}

SEC("tc")
int panel_port(struct __sk_buff *skb)
{
	struct packet p = {};

	return conclude(skb, &p, judge(skb, &p));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
