# What a host says of its agents, `tentaflake.agents` and `tentaflake.host`, and the plan that the policy makes of it. The other
# modules read the plan and nothing else. Types keep out what could not be merged; what may be said the policy judges.
{ config, lib, ... }:
let
  cfg = config.tentaflake;
  policy = import ./policy;
  inherit (policy) defaults;
  inherit (lib) types;

  verdict = policy.check {
    agents = lib.mapAttrsToList (name: agent: agent // { inherit name; }) cfg.agents;
    inherit (cfg) host;
  };
  # So that a host with errors can be evaluated as far as to its assertions.
  nothing = policy.plan { agents = [ ]; };

  # An agent whose name is wrong goes by its place in the list.
  byPlace = lib.listToAttrs (
    lib.imap0 (i: lib.nameValuePair "agents[${toString i}]") (lib.attrNames cfg.agents)
  );
  refuse =
    error:
    let
      of = if error.agent == null then "host" else "agents.${byPlace.${error.agent} or error.agent}";
    in
    {
      assertion = false;
      message = "tentaflake.${of}${
        lib.optionalString (error.field != "") ".${error.field}"
      }: ${error.message}";
    };

  size = types.either types.ints.positive types.str;
  # Data as JSON has it (after pkgs.formats.json): definitions of several modules are merged.
  json =
    types.nullOr (
      types.oneOf [
        types.bool
        types.int
        types.float
        types.str
        (types.attrsOf json)
        (types.listOf json)
      ]
    )
    // {
      description = "JSON value";
    };
  protocol = types.enum [
    "tcp"
    "udp"
  ];

  destination = types.submodule {
    options = {
      network = lib.mkOption {
        type = types.str;
        example = "198.51.100.0/24";
        description = "An IPv4 or IPv6 network in canonical form; one address is a `/32` or a `/128`.";
      };
      ports = lib.mkOption {
        type = types.nullOr (types.listOf types.port);
        default = defaults.destination.ports;
        example = [ 443 ];
        description = "The ports there, or null for all of them.";
      };
      protocol = lib.mkOption {
        type = types.nullOr protocol;
        default = defaults.destination.protocol;
        example = "udp";
        description = "Null is TCP where `ports` are named, and every protocol where they are not.";
      };
    };
  };

  published = types.submodule {
    options = {
      port = lib.mkOption {
        type = types.port;
        example = 8080;
        description = "The port on the tailnet.";
      };
      target = lib.mkOption {
        type = types.nullOr types.port;
        default = null;
        example = 80;
        description = "The port in the container, or null for the same.";
      };
      protocol = lib.mkOption {
        type = protocol;
        default = defaults.published.protocol;
        example = "udp";
        description = "The protocol of both.";
      };
    };
  };

  secret = types.submodule {
    options = {
      name = lib.mkOption {
        type = types.str;
        example = "model-key";
        description = "What the secret is called, on the host and in the container.";
      };
      file = lib.mkOption {
        type = types.str;
        example = "secrets/model-key.age";
        description = "The age file, relative to {option}`tentaflake.secretsRoot`.";
      };
      as = lib.mkOption {
        type = types.enum [
          "file"
          "env"
        ];
        default = defaults.secret.as;
        example = "env";
        description = "`\"file\"`: the agent reads `/run/secrets/NAME`. `\"env\"`: it has an environment variable.";
      };
      variable = lib.mkOption {
        type = types.nullOr types.str;
        default = defaults.secret.variable;
        example = "MODEL_API_KEY";
        description = "The variable, for `as = \"env\"`; null is the secret's name.";
      };
      shared = lib.mkOption {
        type = types.bool;
        default = defaults.secret.shared;
        example = true;
        description = "Another agent has this secret too. Each gets a copy of its own.";
      };
    };
  };

  agent = types.submodule {
    options = {
      image = lib.mkOption {
        type = types.nullOr types.str;
        default = defaults.agent.image;
        example = "registry.example.org/hermes@sha256:4a2f23bd3ffaa6ee7b3be8a302a38be43ab0321a2988cd3fb16b7dd472dde812";
        description = "The container image, pinned by its digest. Null is the image that this flake pins.";
      };
      allowMutableImage = lib.mkOption {
        type = types.bool;
        default = defaults.agent.allowMutableImage;
        example = true;
        description = "Accept an {option}`image` without a digest, which may be another one tomorrow.";
      };
      command = lib.mkOption {
        type = types.listOf types.str;
        default = defaults.agent.command;
        example = [
          "hermes"
          "gateway"
        ];
        description = "What the container runs. Empty is the image's own command.";
      };
      environment = lib.mkOption {
        type = types.attrsOf types.str;
        default = defaults.agent.environment;
        example = {
          TZ = "Europe/Vienna";
        };
        description = "Environment variables. Nothing secret: every user of the host can read them.";
      };
      settings = lib.mkOption {
        type = types.attrsOf json;
        default = defaults.agent.settings;
        example = {
          agent.max_turns = 20;
        };
        description = ''
          Hermes' `config.yaml`. Nothing secret: on NixOS it is in the Nix store, which every user of the host can read.
        '';
      };
      secrets = lib.mkOption {
        type = types.listOf secret;
        default = defaults.agent.secrets;
        example = [
          {
            name = "model-key";
            file = "secrets/model-key.age";
          }
        ];
        description = "What this agent may know, decrypted with {option}`tentaflake.host.secretsIdentity`.";
      };
      stateDir = lib.mkOption {
        type = types.nullOr types.str;
        default = defaults.agent.stateDir;
        defaultText = lib.literalExpression ''"/var/lib/hermes-''${name}"'';
        example = "/var/lib/agents/coding";
        description = ''
          The agent's home, all that it can write and all that outlives its container. Below `/var/lib`. It stays when the
          agent is taken out: delete it (`rm -rf`) before another agent is given that directory, one around it or one in it.
        '';
      };
      uid = lib.mkOption {
        type = types.nullOr types.ints.positive;
        default = defaults.agent.uid;
        defaultText = lib.literalMD "derived from the name";
        example = 70000;
        description = "The uid and gid of the agent's user.";
      };
      memory = lib.mkOption {
        type = size;
        default = defaults.agent.memory;
        example = "2g";
        description = "Memory, in bytes or like `\"512m\"`. `/tmp` is part of it, and there is no swap.";
      };
      cpus = lib.mkOption {
        type = types.numbers.positive;
        default = defaults.agent.cpus;
        example = 0.5;
        description = "Processors, in steps of 0.001.";
      };
      pids = lib.mkOption {
        type = types.ints.positive;
        default = defaults.agent.pids;
        example = 512;
        description = "Processes and threads.";
      };
      disk = lib.mkOption {
        type = types.nullOr size;
        default = defaults.agent.disk;
        example = "10g";
        description = ''
          A quota for all that the agent's user has on the file system of its state, in bytes or like `"512m"`; null is none.
          That file system has to be mounted with `usrquota`, else the agent does not start.
        '';
      };
      egress = lib.mkOption {
        type = types.either (types.enum [
          "none"
          "internet"
        ]) (types.listOf destination);
        default = defaults.agent.egress;
        example = [
          {
            network = "198.51.100.0/24";
            ports = [ 443 ];
          }
        ];
        description = ''
          Where the agent may open connections to: `"none"`, `"internet"` (public addresses only: no private, link-local,
          metadata, carrier-grade or tailnet range) or a list of networks `{ network; ports; protocol; }`: `ports` null is all of
          them, `protocol` null is TCP where ports are named and every protocol where they are not.
        '';
      };
      publish = lib.mkOption {
        type = types.listOf (types.coercedTo types.port (port: { inherit port; }) published);
        default = defaults.agent.publish;
        example = [ 8080 ];
        description = "Ports that the tailnet reaches, as numbers or in full. Nothing else does.";
      };
      tts = lib.mkOption {
        type = types.bool;
        default = defaults.agent.tts;
        example = true;
        description = "Whether the agent reaches the host's speech server.";
      };
      autoStart = lib.mkOption {
        type = types.bool;
        default = defaults.agent.autoStart;
        example = false;
        description = "Whether the agent starts with the host. If not, start its unit, `docker-hermes-NAME.service`.";
      };
    };
  };
in
{
  options.tentaflake = {
    agents = lib.mkOption {
      type = types.attrsOf agent;
      default = { };
      example = {
        coding.egress = "internet";
        writer.memory = "512m";
      };
      description = ''
        The agents of this host by name. A name has 1 to 24 lower-case letters, digits and dashes; the user, the group and
        the container of an agent are called `hermes-NAME`. One that is taken out leaves its state directory, 0700 under a
        uid that no user has any more: `rm -rf` deletes it for good, before another agent is given that uid or directory.
      '';
    };

    host = {
      name = lib.mkOption {
        type = types.str;
        default = defaults.host.name;
        example = "agents-1";
        description = "The host's name.";
      };
      allowedTCPPorts = lib.mkOption {
        type = types.listOf types.port;
        default = defaults.host.allowedTCPPorts;
        example = [
          22
          443
        ];
        description = "TCP ports that are open to everyone but agents. What is in {option}`networking.firewall` opens none.";
      };
      allowedUDPPorts = lib.mkOption {
        type = types.listOf types.port;
        default = defaults.host.allowedUDPPorts;
        example = [ 41641 ];
        description = "UDP ports that are open to everyone but agents.";
      };
      secretsIdentity = lib.mkOption {
        type = types.str;
        default = defaults.host.secretsIdentity;
        example = "/persistent/ssh_host_ed25519_key";
        description = "The private SSH key on the host that secrets are encrypted for.";
      };
      tailnetInterface = lib.mkOption {
        type = types.nullOr types.str;
        default = defaults.host.tailnetInterface;
        example = "tailscale0";
        description = "Tailscale's interface. Null is no tailnet: Tailscale is off, and no agent's port is published.";
      };
    };

    imageStreams = lib.mkOption {
      type = types.attrsOf types.package;
      default = { };
      example = lib.literalExpression ''
        {
          "example.invalid/hermes-with-git:1" = pkgs.dockerTools.streamLayeredImage { /* … */ };
        }
      '';
      description = ''
        Images that are built here in place of being pulled: by the reference that agents have in `image`, a program that
        writes the image (`dockerTools.streamLayeredImage`). Its store path pins it. The image that agents have by default
        is among them; to the policy others are mutable (`allowMutableImage`).
      '';
    };

    plan = lib.mkOption {
      type = types.raw;
      readOnly = true;
      internal = true;
      default = if verdict.errors == [ ] then verdict.plan else nothing;
      defaultText = lib.literalMD "what the policy makes of the agents and the host";
      description = "The plan: all that this host has to be, as plain data.";
    };
  };

  config.assertions = map refuse verdict.errors;
}
