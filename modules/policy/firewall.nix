# The host's nftables table, as the lines inside `table inet tentaflake { … }`. A drop here is final, whatever
# Docker's own tables accept later. Every agent has a bridge of its own, and every bridge of an agent is named "h-…":
# so no rule is written for a pair or for one agent, and a bridge that is in no set may do nothing.
#
# Two things make a reload take effect on connections that are already open:
#   - "established" alone accepts nothing. A packet in a flow's own direction is judged like its first one.
#   - A packet in the reply direction is judged by the same sets, with source and destination exchanged.
{
  host,
  speechPort,
  agents,
}:
let
  inherit (builtins)
    concatMap
    concatStringsSep
    filter
    isList
    toJSON
    ;
  inherit (import ./addresses.nix) parseAddress;

  # Bridge and interface names are of [A-Za-z0-9_.-]: a JSON string is an nft string.
  quote = toJSON;
  indent = text: "  ${text}";

  # A set; `elements` is a list of lists, the parts of each element. `extra` are further lines of its head.
  set =
    {
      name,
      type,
      claim,
      elements,
      interval ? false,
      extra ? [ ],
    }:
    [
      "set ${name} {"
      "  type ${type}"
    ]
    ++ (if interval then [ "  flags interval" ] else [ ])
    ++ map indent extra
    ++ [ "  comment ${quote claim}" ]
    ++ (
      if elements == [ ] then
        [ ]
      else
        [
          "  elements = {"
          (concatStringsSep ",\n" (map (parts: "    ${concatStringsSep " . " parts}") elements))
          "  }"
        ]
    )
    ++ [ "}" ];
  chain = name: rules: [ "chain ${name} {" ] ++ map indent rules ++ [ "}" ];
  rule = claim: statement: "${statement} comment ${quote claim}";

  bridge = agent: quote agent.network.bridge;
  familyOf = network: (parseAddress (builtins.head (builtins.split "/" network))).family;
  families = [
    {
      number = 4;
      ip = "ip";
      type = "ipv4_addr";
      suffix = "ipv4";
    }
    {
      number = 6;
      ip = "ip6";
      type = "ipv6_addr";
      suffix = "ipv6";
    }
  ];
  perFamily = f: concatMap f families;

  # ---- who an agent is

  addressSets = perFamily (
    family:
    set {
      name = "address_${family.suffix}";
      type = "ifname . ${family.type}";
      claim = "F2: the one source address of each agent";
      elements = map (agent: [
        (bridge agent)
        "${agent.network.${family.suffix}.address} comment ${quote "agent ${agent.name}"}"
      ]) agents;
    }
  );

  uids = set {
    name = "agent_uids";
    type = "uid";
    claim = "F2, F3: the agents' users, who have no network but their containers'";
    elements = map (agent: [ (toString agent.uid) ]) agents;
  };

  # ---- what an operator sees of an attack

  # Each agent's element counts. What is logged is limited by agent, so that one cannot hide another's.
  refusedSets =
    set {
      name = "refused";
      type = "ifname";
      extra = [ "counter" ];
      claim = "F2, F3, F4: packets of each agent that were refused";
      elements = map (agent: [ (bridge agent) ]) agents;
    }
    ++ set {
      name = "reported";
      type = "ifname";
      extra = [
        "size 65535"
        "flags dynamic,timeout"
        "timeout 10m"
      ];
      claim = "F2, F3, F4: agents of whom the log has spoken of late";
      elements = [ ];
    }
    ++ set {
      name = "connections";
      type = "ifname";
      extra = [
        "size 65535"
        "flags dynamic"
      ];
      claim = "D4: open connections of each agent";
      elements = [ ];
    }
    ++ set {
      name = "openings";
      type = "ifname";
      extra = [
        "size 65535"
        "flags dynamic,timeout"
        "timeout 1m"
      ];
      claim = "D4: how fast each agent opens connections";
      elements = [ ];
    };
  refuse = claim: match: rule claim "${match}${if match == "" then "" else " "}goto refuse";
  # Far more than an agent's tools have open; closed ones do not count. For each new connection the kernel may look at all
  # that the agent has: without a limit to both numbers, counting would itself be a way to keep the host busy.
  mostConnections = 1024;
  mostOpenings = "100/second burst 500 packets";

  # ---- F4: where an agent may go

  onInternet = set {
    name = "on_internet";
    type = "ifname";
    claim = "F4: agents with egress internet";
    elements = map (agent: [ (bridge agent) ]) (filter (agent: agent.egress == "internet") agents);
  };

  # Everything that IANA's special-purpose registries do not call globally reachable, and what embeds IPv4.
  specialSets =
    set {
      name = "special_ipv4";
      type = "ipv4_addr";
      interval = true;
      claim = "F4: no public address";
      elements = map (network: [ network ]) [
        "0.0.0.0/8" # this network
        "10.0.0.0/8" # private
        "100.64.0.0/10" # carrier-grade NAT, the tailnet
        "127.0.0.0/8" # loopback
        "169.254.0.0/16" # link-local, metadata services
        "172.16.0.0/12" # private
        "192.0.0.0/24" # protocol assignments
        "192.0.2.0/24" # documentation
        "192.88.99.0/24" # 6to4 relays
        "192.168.0.0/16" # private
        "198.18.0.0/15" # benchmarks
        "198.51.100.0/24" # documentation
        "203.0.113.0/24" # documentation
        "224.0.0.0/3" # multicast, reserved, broadcast
      ];
    }
    # Only 2000::/3 is public at all: that alone leaves out unique-local, link-local, multicast, mapped and NAT64.
    ++ set {
      name = "special_ipv6";
      type = "ipv6_addr";
      interval = true;
      claim = "F4: no public address within 2000::/3";
      elements = map (network: [ network ]) [
        "2001::/23" # protocol assignments, Teredo
        "2001:db8::/32" # documentation
        "2002::/16" # 6to4: an IPv4 address, perhaps a private one
        "3fff::/20" # documentation
      ];
    };

  # The destinations of a list come in three kinds; each has a set per family, as the specs themselves do not overlap
  # within a kind (rules.nix). `parts` are an element's, `match` is a packet's, with the far end as `address`.
  destinations = concatMap (
    agent:
    if isList agent.egress then
      map (
        entry:
        entry
        // {
          from = bridge agent;
          number = familyOf entry.network;
        }
      ) agent.egress
    else
      [ ]
  ) agents;
  kinds = [
    {
      name = "any";
      type = "";
      has = entry: entry.protocol == null;
      parts = _: [ [ ] ];
      match = _: "";
    }
    {
      name = "protocol";
      type = " . inet_proto";
      has = entry: entry.protocol != null && entry.ports == null;
      parts = entry: [ [ entry.protocol ] ];
      match = _: " . meta l4proto";
    }
    {
      name = "port";
      type = " . inet_proto . inet_service";
      has = entry: entry.ports != null;
      parts =
        entry:
        map (port: [
          entry.protocol
          (toString port)
        ]) entry.ports;
      match = port: " . meta l4proto . th ${port}";
    }
  ];
  perKind = f: perFamily (family: concatMap (kind: f family kind) kinds);
  listSets = perKind (
    family: kind:
    set {
      name = "egress_${family.suffix}_${kind.name}";
      type = "ifname . ${family.type}${kind.type}";
      interval = true;
      claim = "F4: destinations of agents with an egress list";
      elements = concatMap (
        entry:
        map (
          rest:
          [
            entry.from
            entry.network
          ]
          ++ rest
        ) (kind.parts entry)
      ) (filter (entry: entry.number == family.number && kind.has entry) destinations);
    }
  );
  listRules =
    {
      interface,
      address,
      port,
      verdict,
    }:
    perKind (
      family: kind: [
        (rule "F4: egress as listed" "${interface} . ${family.ip} ${address}${kind.match port} @egress_${family.suffix}_${kind.name} ${verdict}")
      ]
    );
  publicRules = address: verdict: [
    (rule "F4: public IPv4" "ip ${address} != @special_ipv4 ${verdict}")
    (rule "F4: public IPv6" "ip6 ${address} 2000::/3 ip6 ${address} != @special_ipv6 ${verdict}")
  ];

  # ---- F5: who may come in from the tailnet

  tailnet = host.tailnetInterface != null;
  onTailnet = list: if tailnet then list else [ ];
  publishedSet = onTailnet (set {
    name = "published";
    type = "ifname . inet_proto . inet_service";
    claim = "F5: ports that agents publish";
    elements = concatMap (
      agent:
      map (entry: [
        (bridge agent)
        entry.protocol
        (toString entry.target)
      ]) agent.publish
    ) agents;
  });
  tailnetInterface = quote host.tailnetInterface;

  # ---- T3: who may speak

  speechSets = perFamily (
    family:
    set {
      name = "speech_${family.suffix}";
      type = "ifname . ${family.type}";
      claim = "T3: gateways on which agents with tts reach the speech server";
      elements = map (agent: [
        (bridge agent)
        agent.network.${family.suffix}.gateway
      ]) (filter (agent: agent.tts) agents);
    }
  );
  speechRules = perFamily (family: [
    (rule "T3: the speech server, on the agent's own gateway" "iifname . ${family.ip} daddr @speech_${family.suffix} tcp dport ${toString speechPort} goto admitted")
  ]);

  # ---- F1: what the host opens

  openSets =
    concatMap
      (
        { protocol, ports }:
        set {
          name = "open_${protocol}";
          type = "inet_service";
          claim = "F1: ports that the host's settings open";
          elements = map (port: [ (toString port) ]) ports;
        }
      )
      [
        {
          protocol = "tcp";
          ports = host.allowedTCPPorts;
        }
        {
          protocol = "udp";
          ports = host.allowedUDPPorts;
        }
      ];

  relatedErrors = rule "F1, F4: errors about an open flow, path MTU among them" "ct state related meta l4proto { icmp, ipv6-icmp } accept";
  isReply = "ct state established ct direction reply";

  chains = concatMap (c: [ "" ] ++ c) [
    (chain "spoofed" [
      "type filter hook prerouting priority raw; policy accept;"
      (refuse "F2: no forged IPv4 source" "iifname \"h-*\" iifname . ip saddr != @address_ipv4")
      (refuse "F2: no forged IPv6 source; link-local ones never get past the host" "iifname \"h-*\" ip6 saddr != { ::, fe80::/10 } iifname . ip6 saddr != @address_ipv6")
    ])
    (chain "input" [
      "type filter hook input priority filter - 10; policy drop;"
      (rule "F1: the host itself" "iifname \"lo\" accept")
      (rule "F3: agents have rules of their own" "iifname \"h-*\" goto agent_to_host")
      (rule "F1: answers to the host's own connections" "${isReply} accept")
      relatedErrors
      (rule "F1: opened by the host's settings" "tcp dport @open_tcp accept")
      (rule "F1: opened by the host's settings" "udp dport @open_udp accept")
      (rule "F1: ping" "icmp type echo-request accept")
      (rule "F1: ping" "icmpv6 type echo-request accept")
      (rule "F1: without these there is no IPv6; hop limit 255 is from this wire" "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } ip6 hoplimit 255 accept")
      (rule "F1: multicast listener queries, for switches that snoop" "icmpv6 type mld-listener-query ip6 saddr fe80::/10 accept")
      (rule "F1: every other port is closed" "counter drop")
    ])
    (chain "output" [
      "type filter hook output priority filter - 10; policy accept;"
      (rule "F2, F3: an agent's user on the host itself" "meta skuid @agent_uids counter drop")
    ])
    (chain "agent_to_host" (
      [
        (rule "F3: without these the gateway has no IPv6 neighbour" "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept")
        (rule "F3: what a kernel says when an interface comes up is no attack" "icmpv6 type { nd-router-solicit, mld-listener-report, mld2-listener-report } drop")
        (rule "F3: answers to what the host asks" "${isReply} accept")
      ]
      ++ speechRules
      ++ [ (refuse "F3: nothing else of the host" "") ]
    ))
    (chain "forward" [
      "type filter hook forward priority filter - 10; policy drop;"
      (refuse "F2: no agent reaches an agent, whatever the address or the state" "iifname \"h-*\" oifname \"h-*\"")
      (rule "F4: an agent's way out" "iifname \"h-*\" goto from_agent")
      (rule "F5: the way in to an agent" "oifname \"h-*\" goto to_agent")
      (rule "F6: nobody's agent; a table without its rules forwards nothing at all" "accept")
    ])
    (chain "from_agent" (
      onTailnet [
        (rule "F5: answers of a published port" "oifname ${tailnetInterface} ${isReply} iifname . meta l4proto . th sport @published accept")
      ]
      ++ [
        (refuse "F5: no other answers" "ct direction reply")
        (refuse "F4: neither a new flow nor part of one" "ct state invalid")
        (rule "F4: egress internet" "iifname @on_internet jump to_internet")
      ]
      ++ listRules {
        interface = "iifname";
        address = "daddr";
        port = "dport";
        verdict = "goto admitted";
      }
      ++ [ (refuse "F4: egress none, and whatever else is not granted" "") ]
    ))
    (chain "to_agent" (
      onTailnet [
        (rule "F5: published ports, from the tailnet only" "iifname ${tailnetInterface} ct direction original oifname . meta l4proto . th dport @published accept")
      ]
      ++ [
        relatedErrors
        (rule "F5: no other way in than an answer" "ct direction original counter drop")
        (rule "F4: neither an answer nor an error about one" "ct state != established counter drop")
        (rule "F4: egress internet" "oifname @on_internet jump from_internet")
      ]
      ++ listRules {
        interface = "oifname";
        address = "saddr";
        port = "sport";
        verdict = "accept";
      }
      ++ [ (rule "F4: no longer allowed, so no longer answered" "counter drop") ]
    ))
    (chain "to_internet" (publicRules "daddr" "goto admitted"))
    (chain "from_internet" (publicRules "saddr" "accept"))
    (chain "admitted" [
      (refuse "D4: no agent keeps the host busy with new connections" "ct state new update @openings { iifname limit rate over ${mostOpenings} }")
      (refuse "D4: no agent fills the host's table of connections" "ct state new add @connections { iifname ct count over ${toString mostConnections} }")
      (rule "F3, F4: as granted" "accept")
    ])
    (chain "refuse" [
      (rule "F2, F3, F4: to the journal, six times a minute of each agent" "update @reported { iifname limit rate 6/minute burst 6 packets } log level notice prefix \"tentaflake refused: \"")
      (rule "F2, F3, F4: counted by agent" "iifname @refused drop")
      (rule "F2: of a bridge that is no agent's" "counter drop")
    ])
  ];
in
concatStringsSep "\n" (
  addressSets
  ++ uids
  ++ refusedSets
  ++ onInternet
  ++ specialSets
  ++ listSets
  ++ publishedSet
  ++ speechSets
  ++ openSets
  ++ chains
)
+ "\n"
