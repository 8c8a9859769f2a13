/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the identity filter and the program that fills its maps both know.
 *
 * Addresses and ports are in host byte order, in keys, values and events, with one exception:
 * `cidr_key.address` is in network byte order, because the trie compares from the first byte on.
 *
 * Numbers are never used again for something else: a reason, mode or kind that is given up stays
 * in its list as a comment. chainctl/net/identity.py mirrors this file; a test compares the two
 * through the object's BTF.
 */
#ifndef CHAINCTL_IDENTITY_H
#define CHAINCTL_IDENTITY_H

#include <linux/types.h>

/* Who somebody is. Below 256 reserved; from 256 given out; prefixes have bit 24 set. */
enum identity {
	IDENTITY_UNKNOWN = 0, /* never passes */
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2, /* everybody else: a destination, never a source */
};

/*
 * Why a packet passed or was dropped. The index of `reason_map`, and `verdict.reason`.
 * What passes lies between PASS_FIRST and DROP_FIRST; zero is not among it.
 */
enum reason {
	UNDECIDED = 0,
	EVENT_LOST = 1, /* only counted: a verdict that found the ring full */

	PASS_WIRE = 2,       /* the tuple is listed for this port */
	PASS_FRAGMENT = 3,   /* a later fragment of something that passed, or of a listed tuple */
	PASS_NEW = 4,        /* the first packet of a client's flow */
	PASS_KNOWN = 5,      /* another one of it */
	PASS_REPLY = 6,      /* the reverse of a remembered flow */
	PASS_ICMP_ERROR = 7, /* quotes a remembered flow */
	PASS_AUDITED = 8,    /* a rule denies it, but only to be watched */

	DROP_SHORT = 16, /* ends before its headers do, or before its IP length */
	DROP_VLAN = 17,
	DROP_NOT_IPV4 = 18,    /* IPv6, ARP and everything else */
	DROP_OPTIONS = 19,     /* IPv4 with a header of other than 20 bytes */
	DROP_NO_PORT = 20,     /* nothing is known about the port */
	DROP_NO_FAR_END = 21,  /* no wire begins here */
	DROP_TOO_LONG = 22,    /* for the far leg's MTU, which redirection does not check */
	DROP_SPOOFED = 23,     /* not from the address of the port */
	DROP_FRAGMENT = 24,    /* of nothing that passed */
	DROP_NO_WIRE = 25,     /* the tuple is not listed for this port */
	DROP_GATE = 26,        /* shut, expired or never opened */
	DROP_SOURCE = 27,      /* the sender has no identity here */
	DROP_DESTINATION = 28, /* the receiver has no identity here */
	DROP_NO_RULE = 29,     /* no rule matched */
	DROP_RULE = 30,        /* `verdict.rule` denies it */
	DROP_NO_FLOW = 31,     /* answers nothing that was asked, or not lately */
	DROP_ICMP = 32,        /* a type that is not carried in this direction */
	DROP_QUOTE = 33,       /* an ICMP error about a packet its receiver did not send */
};
#define PASS_FIRST PASS_WIRE
#define DROP_FIRST DROP_SHORT
#define REASONS    64 /* room in `reason_map`, so that a new reason keeps the map */

/* What judges a packet that enters the panel at a port. */
enum mode {
	MODE_TUPLE = 1,  /* only the exact tuples listed in `wire_map` */
	MODE_CLIENT = 2, /* gate, then identities and policy; remembers flows */
	MODE_REPLY = 3,  /* gate, then only answers to remembered flows */
};

/*
 * port_map[ifindex]: what is known about a port.
 * `address`: the only source that a TUPLE port may have, 0 when the tuples alone say it.
 * `far_mtu`: the longest IPv4 packet for the leg at the other end of the wire.
 * `scope`: whose endpoints, rules and flows (CLIENT and REPLY).
 * `gate`: the ifindex in `gate_map` that CLIENT and REPLY ports ask; 0 is always shut.
 *
 *   {identity 256, address 198.19.0.2, far_mtu 1440, mode TUPLE, scope 0, gate 0}
 *   {identity 257, address 0, far_mtu 1312, mode CLIENT, scope 3, gate 12}
 */
struct port {
	__u32 identity;
	__u32 address;
	__u32 far_mtu;
	__u32 mode;
	__u32 scope;
	__u32 gate;
};
_Static_assert(sizeof(struct port) == 24, "port");

/*
 * wire_map[wire_key]: one tuple that may enter at a port. With `fragment` set and both ports 0,
 * later fragments may enter by their addresses; the first one still has to match exactly, in a
 * row that has WIRE_FRAGMENTS set.
 *
 *   {ifindex 7, 198.19.0.2:40002 -> 192.0.2.10:51820, 17, fragment 0} -> {rule 1, flags 0}
 */
struct wire_key {
	__u32 ifindex;
	__u32 source;
	__u32 destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 fragment;
	__u16 zero;
};
_Static_assert(sizeof(struct wire_key) == 20, "wire_key");

#define WIRE_FRAGMENTS 1
struct wire {
	__u32 rule;
	__u32 flags;
};
_Static_assert(sizeof(struct wire) == 8, "wire");

/* endpoint_map[{scope 3, 192.168.1.5}] -> identity 256; asked before cidr_map. */
struct endpoint_key {
	__u32 scope;
	__u32 address;
};
_Static_assert(sizeof(struct endpoint_key) == 8, "endpoint_key");

/*
 * cidr_map[{prefix_length 32 + 24, scope 3, 192.168.1.0}] -> identity; the longest prefix wins,
 * and a length of 32 stands for the whole scope. `prefix_length` counts the scope's bits too.
 */
struct cidr_key {
	__u32 prefix_length;
	__u32 scope;
	__be32 address;
};
_Static_assert(sizeof(struct cidr_key) == 12, "cidr_key");

/*
 * policy_map[policy_key]: may `source` send to `destination`? The row for {class, protocol}
 * decides, without one that for {0, protocol}, without that the one for {0, 0}. `port_class`
 * gives the class of a destination port (TCP and UDP only), 0 for none.
 *
 * The row for {0, 0} is asked first, because its `covers` says which others need not be asked:
 * those that the pair does not have. Zero covers nothing and is right for every row, only slower.
 *
 *   {scope 3, client, world, class DNS, UDP} -> {rule 4, deny 1}
 *   {scope 3, client, world, 0, 0}           -> {rule 1, covers PROTOCOLS}
 */
struct policy_key {
	__u32 scope;
	__u32 source;
	__u32 destination;
	__u16 port_class;
	__u8 protocol;
	__u8 zero;
};
_Static_assert(sizeof(struct policy_key) == 16, "policy_key");

#define COVERS_CLASSES   1 /* no row of the pair names a class */
#define COVERS_PROTOCOLS 2 /* no row of the pair names a protocol without a class */
struct policy_rule {
	__u32 rule;
	__u8 deny;
	__u8 audit; /* a denial is reported but not enforced */
	__u8 covers;
	__u8 zero;
};
_Static_assert(sizeof(struct policy_rule) == 8, "policy_rule");

enum flow_kind {
	FLOW = 0,          /* as the client sends it; ICMP echo has its id as both ports */
	FLOW_FRAGMENT = 1, /* as it travels: IP id as source_port, destination_port 0 */
};

/*
 * flow_map[scope] is a table of its own for each scope, so that nobody can push another chain's
 * flows out: flow_key -> boot time in ns of the last packet that was allowed by a rule. Answers
 * do not prolong it, so that what a revoked rule allowed ends by itself.
 *
 *   {192.168.1.5:40000 -> 198.51.100.9:443, 6, FLOW} -> 81267000000000
 */
struct flow_key {
	__u32 source;
	__u32 destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 kind;
	__u16 zero;
};
_Static_assert(sizeof(struct flow_key) == 16, "flow_key");

/* A record of the ring `verdict_map`: every drop, and every first packet of a client's flow. */
struct verdict {
	__u64 when; /* ns since boot */
	__u32 port; /* ifindex */
	__u32 source;
	__u32 destination;
	__u32 source_identity;
	__u32 destination_identity;
	__u32 rule;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 reason;
	__u16 length; /* of the IPv4 packet as it is on the wire */
};
_Static_assert(sizeof(struct verdict) == 40, "verdict");

#endif
