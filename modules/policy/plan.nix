# The plan: all that a host has to be, as plain data. Only called with valid agents; what is listed is in the order
# of the agents' names, so that the order in the user's file does not matter (X4).
let
  inherit (builtins)
    attrValues
    concatMap
    filter
    isString
    listToAttrs
    ;
  images = import ./images.nix;
  container = import ./container.nix;
  secrets = import ./secrets.nix;
  inherit (import ./identity.nix) range;
  inherit (import ./yaml.nix) toYaml;

  firewall = [
    "nftables.service"
    "tentaflake-routing.service"
  ];
  docker = [ "docker.service" ];

  table = {
    family = "inet";
    table = "tentaflake";
  };

  # Docker's daemon.json, for Docker 26.1 on.
  dockerSettings = {
    # Images keep their registry digest when they are loaded from a file, so that C5 can be checked offline.
    features.containerd-snapshotter = true;
    # No docker0: a container that was started by hand shares a wire with nobody.
    bridge = "none";
    icc = false;
    # IPv6 is filtered and translated as IPv4 is; before Docker 27 that is behind `experimental`.
    ip6tables = true;
    experimental = true;
    # A proxy process would accept published ports in the host's own name, past the forward rules (F5).
    userland-proxy = false;
    no-new-privileges = true;
    log-driver = "journald";
    # A small program in C starts a container in a sixth less time than runc, which copies itself into memory first. It is
    # found in the daemon's PATH.
    default-runtime = "crun";
    runtimes.crun.path = "crun";
    # What `--init` puts before an image's own command.
    init-path = secrets.init.path;
  };

  # D4: nothing keeps the agents' limits from adding up to more than the host has. What is in this slice (systemd.slice(5))
  # together never has more than its part, and of the processors as much as all services of the host.
  slice = {
    name = "hermes.slice";
    memoryMax = "75%";
  };

  mkAgent =
    host:
    {
      label,
      spec,
      identity,
      stateDir,
      ...
    }:
    let
      name = label;
      inherit (identity) user;
      group = user;
      agent = {
        inherit
          name
          user
          group
          stateDir
          ;
        inherit (identity) uid gid;
        inherit (spec)
          allowMutableImage
          autoStart
          publish
          tts
          ;
        secrets = map (secrets.forAgent name) spec.secrets;
        egress =
          if isString spec.egress then
            spec.egress
          else
            map (entry: entry // { network = entry.network.text; }) spec.egress;
        network = {
          name = user;
          inherit (identity) bridge ipv4 ipv6;
          # An internal network has no way out, and so no way for the answers of a published port either:
          # the firewall alone then keeps egress "none".
          internal = spec.egress == "none" && spec.publish == [ ];
        };
        config = {
          path = "/etc/hermes/${name}/config.yaml";
          content = toYaml spec.settings;
          mode = "0440";
          user = "root";
          inherit group;
        };
        limits = {
          inherit (spec)
            memory
            cpus
            pids
            disk
            ;
        };
        service = {
          name = "docker-${user}";
          # F6: no agent before the rules, and none without them.
          after = docker ++ firewall;
          requires = firewall;
          # C6: an agent stops and starts with Docker. One that required it would not be started any more after a failed start
          # of Docker (systemd.unit(5)); this one fails too, and each of its own starts is one of Docker.
          wants = docker;
          partOf = docker;
          wantedBy = if spec.autoStart then [ "multi-user.target" ] else [ ];
          restart = "always";
          restartSec = 2;
          startLimitIntervalSec = 0; # C6: never give up
        };
      };
    in
    agent
    // {
      container = container {
        inherit (agent) secrets;
        agent = agent // {
          inherit spec;
          image = if spec.image == null then images.default else spec.image;
        };
        slice = slice.name;
        # With no tailnet there is nobody to publish to (N1).
        published = if host.tailnetInterface == null then [ ] else spec.publish;
      };
    };
in
{
  host,
  speechPort,
  agents,
}:
let
  byName = listToAttrs (
    map (agent: {
      name = agent.label;
      value = mkAgent host agent;
    }) agents
  );
  sorted = attrValues byName;
  byUser =
    f:
    listToAttrs (
      map (agent: {
        name = agent.user;
        value = f agent;
      }) sorted
    );
in
{
  version = 1;
  inherit host;
  users = byUser (agent: {
    inherit (agent) uid group;
    home = agent.stateDir;
    shell = "/usr/sbin/nologin";
    description = "Hermes agent ${agent.name}";
  });
  groups = byUser (agent: {
    inherit (agent) gid;
  });
  directories = concatMap (agent: [
    {
      path = agent.stateDir;
      mode = "0700";
      inherit (agent) user group;
    }
    {
      path = "/etc/hermes/${agent.name}";
      mode = "0750";
      user = "root";
      inherit (agent) group;
    }
  ]) sorted;
  docker.settings = dockerSettings;
  inherit slice;
  containerInit = secrets.init;
  # By name on the host, as agenix has them (age.secrets).
  secrets = listToAttrs (
    concatMap (
      agent:
      map (secret: {
        name = secret.id;
        value = {
          inherit (secret) file path;
          mode = "0400";
          owner = agent.user;
          inherit (agent) group;
        };
      }) agent.secrets
    ) sorted
  );
  agents = byName;
  nftables = import ./guard.nix table // {
    content = import ./firewall.nix {
      inherit host speechPort;
      agents = sorted;
    };
  };
  # F2, F6: what still holds when somebody has flushed the ruleset, and how soon it is back. The kernel routes nothing
  # between these networks, whatever the rules say; the host's own packets to an agent are not meant.
  routing.unreachable = range;
  nftablesCheckSec = 30;
  # C6: looked at as often.
  watch = import ./watch.nix { agents = attrValues byName; };
  speech = import ./speech.nix {
    port = speechPort;
    agents = filter (agent: agent.tts) sorted;
  };
  audit = import ./audit.nix { agents = sorted; };
}
