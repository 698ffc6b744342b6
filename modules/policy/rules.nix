# The rules between the fields of an agent and between the agents of a host. Cost is linear in the agents:
# whatever must be unique is grouped by its key, never compared pair by pair.
let
  inherit (builtins)
    attrValues
    concatMap
    elemAt
    filter
    genList
    groupBy
    head
    isString
    length
    listToAttrs
    match
    sort
    split
    tail
    ;
  inherit (import ./text.nix) indices show;
  inherit (import ./addresses.nix) contains;

  error = agent: path: value: rule: fix: {
    agent = agent.label;
    inherit path rule fix;
    value = show value;
  };

  # Groups of entries with the same key, each in the order in which they were given.
  grouped = entries: attrValues (groupBy (entry: entry.key) entries);
  firsts = entries: map head (grouped entries);
  clashes =
    entries: explain: concatMap (group: map (explain (head group)) (tail group)) (grouped entries);
  keyed = key: agents: map (agent: agent // { key = key agent; }) agents;

  # ---- within one agent

  pinned =
    agent:
    let
      inherit (agent.spec) image allowMutableImage;
    in
    if
      !(agent.spec ? image && agent.spec ? allowMutableImage) || image == null || allowMutableImage
    then
      [ ]
    else if image == (import ./images.nix).default then
      [ ] # pinned by the flake that builds it
    else if match ".*@sha256:[0-9a-f]{64}" image != null then
      [ ]
    else
      [
        (error agent [ "image" ] image "must be pinned by digest, because a tag can change under the agent"
          "write repo@sha256:<64 hex digits>, or set allowMutableImage = true"
        )
      ];

  distinctSecrets =
    agent:
    clashes
      (genList (i: {
        key = (elemAt agent.spec.secrets i).name;
        inherit i;
      }) (length (agent.spec.secrets or [ ])))
      (
        _: again:
        error agent [
          "secrets"
          again.i
          "name"
        ] again.key "names a secret that is already in the list" "remove or rename one of them"
      );

  # A variable has one value, whether it is in the open or a secret.
  distinctVariables =
    agent:
    let
      environment = agent.spec.environment or { };
      secrets = agent.spec.secrets or [ ];
      entries = filter (entry: entry.key != null) (
        genList (i: {
          key = (elemAt secrets i).variable;
          inherit i;
        }) (length secrets)
      );
      explain =
        rule:
        { key, i, ... }:
        error agent [ "secrets" i "variable" ] key rule "remove one of them or choose another variable";
    in
    map (explain "is set in environment too") (filter (entry: environment ? ${entry.key}) entries)
    ++ clashes entries (first: explain "is the variable of secrets[${toString first.i}] too");

  # All of it is on one command line, for which Linux has 2 MiB (execve(2)).
  startable =
    agent:
    let
      size = builtins.foldl' (sum: text: sum + builtins.stringLength text) 0;
      sizes = {
        command = size (agent.spec.command or [ ]);
        environment = size (attrValues (agent.spec.environment or { }));
      };
      larger = if sizes.command > sizes.environment then "command" else "environment";
    in
    if sizes.command + sizes.environment <= 1000000 then
      [ ]
    else
      [
        (error agent [ larger ] agent.spec.${larger}
          "must have at most 1000000 bytes, command and environment together, as Linux takes no longer command line"
          "put it in files in the state directory"
        )
      ];

  # Two destinations overlap when the same packet fits both. Sorted by address, a network that overlaps any other
  # overlaps its neighbour, since networks nest or are disjoint.
  disjointEgress =
    agent:
    let
      egress = agent.spec.egress or "none";
      flows =
        i:
        let
          entry = elemAt egress i;
          flow = port: {
            key = "${toString entry.network.family} ${toString entry.protocol} ${toString port}";
            inherit i;
            inherit (entry) network;
          };
        in
        if entry.ports == null then [ (flow null) ] else map flow entry.ports;
      byAddress =
        a: b:
        if a.network.words != b.network.words then
          a.network.words < b.network.words
        else if a.network.prefix != b.network.prefix then
          a.network.prefix < b.network.prefix
        else
          a.i < b.i;
      overlapping =
        group:
        let
          sorted = sort byAddress group;
          pairs = genList (i: {
            outer = elemAt sorted i;
            inner = elemAt sorted (i + 1);
          }) (length sorted - 1);
        in
        filter ({ outer, inner }: contains outer.network inner.network) pairs;
      found = concatMap overlapping (grouped (concatMap flows (indices (length egress))));
      # One error per destination, however many of its ports overlap.
      once = map (pair: pair // { key = toString pair.inner.i; }) found;
    in
    if isString egress then
      [ ]
    else
      map (
        { outer, inner, ... }:
        error agent [ "egress" inner.i "network" ] inner.network.text
          "overlaps egress[${toString outer.i}], ${outer.network.text}, for the same ports"
          "remove one of them or merge the two"
      ) (firsts once);

  # ---- between agents

  uniqueNames =
    agents:
    clashes agents (
      first: again:
      error again [ "name" ] again.key
        "must be unique on the host, and agents[${toString first.index}] has it too"
        "rename one of them"
    );

  uniqueUids =
    agents:
    clashes agents (
      first: again:
      error again [ "uid" ] again.identity.uid
        "must be unique on the host, and agent ${first.label} has it too"
        "set uid on one of them"
    );

  uniqueSubnets =
    agents:
    clashes agents (
      first: again:
      error again [ "uid" ] again.identity.uid
        "gives the subnet ${again.identity.ipv4.subnet}, and agent ${first.label} has it too"
        "set uid on one of them"
    );

  uniqueBridges =
    agents:
    clashes agents (
      first: again:
      error again [ "name" ] again.spec.name
        "gives the bridge ${again.key}, and agent ${first.label} has it too"
        "rename one of them"
    );

  # Every proper ancestor below /var/lib: "/var/lib/a/b/c" has "/var/lib/a" and "/var/lib/a/b".
  ancestors =
    path:
    let
      parts = filter isString (split "/" path);
    in
    genList (i: builtins.concatStringsSep "/" (genList (elemAt parts) (i + 4))) (length parts - 4);

  separateStateDirs =
    agents:
    let
      owners = groupBy (agent: agent.key) agents;
      nested =
        agent:
        map (
          outer:
          error agent [ "stateDir" ] agent.key
            "lies inside ${outer}, the state directory of agent ${(head owners.${outer}).label}"
            "choose directories that do not contain each other"
        ) (filter (path: owners ? ${path}) (ancestors agent.key));
    in
    clashes agents (
      first: again:
      error again [ "stateDir" ] again.key
        "must be unique on the host, and agent ${first.label} has it too"
        "choose another directory for one of them"
    )
    ++ concatMap nested (firsts agents);

  # One name is one file, one file is one name, and it is one agent's unless all who name it agree: a line that was
  # copied must not give an agent what is another's.
  ownSecrets =
    agents:
    let
      listed =
        agent:
        firsts (
          genList (i: {
            key = (elemAt agent.spec.secrets i).name;
            secret = elemAt agent.spec.secrets i;
            inherit agent i;
          }) (length (agent.spec.secrets or [ ]))
        );
      entries = concatMap listed agents;
      at = entry: field: error entry.agent [ "secrets" entry.i field ] entry.secret.${field};
      # Those of a group whose field is not the first one's.
      unlike =
        field: explain: group:
        let
          first = head group;
        in
        map (explain first) (filter (again: again.secret.${field} != first.secret.${field}) (tail group));
      otherFile = unlike "file" (
        first: again:
        at again "file"
          "is another file than agent ${first.agent.label} has for ${again.key}, ${first.secret.file}"
          "name the same file or rename one of the secrets; the variable of an env secret is set with variable"
      );
      otherName = unlike "name" (
        first: again:
        at again "name" "names a file that agent ${first.agent.label} has as ${first.secret.name}"
          "use the same name or another file"
      );
      # The second's mistake, as far as anybody can tell; the first's when it alone does not say so.
      unshared =
        group:
        let
          silent = filter (entry: !entry.secret.shared) group;
          isFirst = length silent == 1 && (head silent).agent.label == (head group).agent.label;
          explain =
            other: entry:
            at entry "shared" "must be true, because agent ${other.agent.label} has the secret ${entry.key} too"
              "set shared = true on both, or give each agent a secret of its own";
        in
        if length group == 1 || otherFile group != [ ] then
          [ ]
        else if isFirst then
          [ (explain (elemAt group 1) (head group)) ]
        else
          map (explain (head group)) (filter (entry: entry.agent.label != (head group).agent.label) silent);
      byName = grouped entries;
    in
    concatMap otherFile byName
    ++ concatMap unshared byName
    ++ concatMap otherName (grouped (map (entry: entry // { key = entry.secret.file; }) entries));

  uniquePorts =
    { host, speechPort }:
    agents:
    let
      taken =
        protocol: why: ports:
        map (port: {
          name = "${protocol}/${toString port}";
          value = why;
        }) ports;
      hosts = listToAttrs (
        taken "udp" "the host's own (allowedUDPPorts)" (host.allowedUDPPorts or [ ])
        ++ taken "tcp" "the host's own (allowedTCPPorts)" (host.allowedTCPPorts or [ ])
        ++ taken "tcp" "the speech server's" [ speechPort ]
      );
      entries = concatMap (
        agent:
        genList (
          i:
          let
            entry = elemAt agent.spec.publish i;
          in
          {
            key = "${entry.protocol}/${toString entry.port}";
            inherit agent i entry;
          }
        ) (length (agent.spec.publish or [ ]))
      ) agents;
      explain =
        rule:
        {
          agent,
          i,
          entry,
          ...
        }:
        error agent [ "publish" i ] entry.port rule "publish another port";
    in
    map (entry: explain "is ${hosts.${entry.key}}, ${entry.key}" entry) (
      filter (entry: hosts ? ${entry.key}) entries
    )
    ++ clashes (filter (entry: !(hosts ? ${entry.key})) entries) (
      first: explain "is already published by agent ${first.agent.label} (${first.key})"
    );
in
# `agents` are `{ index; label; spec; identity; }`, where `spec` holds the valid fields only and `identity` is null
# when name or uid is wrong. An agent whose name is taken is left out of what follows from its name, and so on:
# one mistake is reported once.
{
  host,
  speechPort,
  agents,
}:
let
  named = keyed (agent: agent.spec.name) (filter (agent: agent.spec ? name) agents);
  known = filter (agent: agent.identity != null) (firsts named);
  byUid = keyed (agent: toString agent.identity.uid) known;
  bySlot = keyed (agent: toString agent.identity.slot) (firsts byUid);
in
concatMap pinned agents
++ concatMap startable agents
++ concatMap distinctSecrets agents
++ concatMap distinctVariables agents
++ concatMap disjointEgress agents
++ uniqueNames named
++ uniqueUids byUid
++ uniqueSubnets bySlot
++ uniqueBridges (keyed (agent: agent.identity.bridge) known)
++ separateStateDirs (
  keyed (agent: agent.stateDir) (filter (agent: agent.stateDir != null) (firsts named))
)
++ uniquePorts { inherit host speechPort; } (firsts named)
++ ownSecrets (firsts named)
