# The agents: of each its user, its directories, its configuration, and its container with all that `docker run` needs first.
# harness/guests/activate.py does the same for the Debian guest.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (config.tentaflake) imageStreams plan;
  forAgents = f: lib.mapAttrs' (_: f) plan.agents;

  mkUser = _: user: {
    # Every system user's shell on NixOS is its own nologin; the plan's path is Debian's.
    isSystemUser = true;
    inherit (user)
      uid
      group
      home
      description
      ;
  };

  mkDirectory = directory: {
    name = directory.path;
    value.d = { inherit (directory) mode user group; };
  };

  etcName = agent: lib.removePrefix "/etc/" agent.config.path;
  mkConfig =
    agent:
    lib.nameValuePair (etcName agent) {
      text = agent.config.content;
      inherit (agent.config) mode user group;
    };

  mkContainer =
    agent:
    lib.nameValuePair agent.container.name {
      inherit (agent.container)
        environment
        hostname
        image
        networks
        ports
        pull
        user
        workdir
        ;
      cmd = agent.container.command;
      extraOptions = agent.container.options;
      inherit (agent) autoStart;
      serviceName = agent.service.name;
    };

  # What writes the agent's image, if that is built here; and the unit that loads it.
  streamOf =
    agent: lib.optional (imageStreams ? ${agent.container.image}) imageStreams.${agent.container.image};
  loaded = agent: lib.optional (streamOf agent != [ ]) "tentaflake-images.service";
  streams = lib.filterAttrs (
    image: _: lib.any (agent: agent.container.image == image) (lib.attrValues plan.agents)
  ) imageStreams;

  # Loads an image unless Docker has the very one: its store path and Docker's id of it are noted.
  loadImage =
    image: stream:
    let
      name = lib.escapeShellArg image;
    in
    ''
      note="$STATE_DIRECTORY/${builtins.hashString "sha256" image}"
      id=$(docker image inspect --format '{{ .Id }}' ${name} 2> /dev/null) || id=
      if [ -z "$id" ] || [ "$(cat "$note" 2> /dev/null)" != "${stream} $id" ]; then
        ${stream} | docker load
        id=$(docker image inspect --format '{{ .Id }}' ${name})
        echo "${stream} $id" > "$note"
      fi
    '';

  # The arguments of `docker network create` for the agent's own bridge.
  networkArguments =
    { network, ... }:
    [
      "--driver=bridge"
      "--opt=com.docker.network.bridge.name=${network.bridge}"
    ]
    ++ lib.optional network.internal "--internal"
    ++ [
      "--subnet=${network.ipv4.subnet}"
      "--gateway=${network.ipv4.gateway}"
      "--ipv6"
      "--subnet=${network.ipv6.subnet}"
      "--gateway=${network.ipv6.gateway}"
      network.name
    ];

  # A disk quota of the agent's user: blocks of 1 KiB, an inode per 16 KiB as mke2fs has it (setquota(8)).
  setQuota =
    agent:
    let
      limit = agent.limits.disk;
      set =
        blocks: inodes:
        "setquota -u ${toString agent.uid} 0 ${toString blocks} 0 ${toString inodes} "
        + ''"$(findmnt -n -o TARGET -T ${lib.escapeShellArg agent.stateDir})"'';
      reason = "disk quota of agent ${agent.name}: the file system of its state needs user quotas (mount option usrquota)";
    in
    if limit == null then
      "${set 0 0} 2> /dev/null || :" # there may be one from before, or no quotas here at all
    else
      ''
        ${set (limit / 1024) (lib.max (limit / 16384) 1024)} || {
          echo ${lib.escapeShellArg reason} >&2
          exit 1
        }'';

  # Before anything of the agent: a directory that another agent has left is not this one's, though systemd-tmpfiles has given
  # it the directory itself by now. What is root's, as lost+found, does not matter.
  checkState =
    agent:
    let
      reason =
        "agent ${agent.name}: ${agent.stateDir} holds what is another user's, as an agent that was removed leaves it: "
        + "delete that, give it away with chown -R, or choose another stateDir";
    in
    pkgs.writeShellApplication {
      name = "check-state-${agent.user}";
      runtimeInputs = [ pkgs.findutils ];
      text = ''
        strange=$(find ${lib.escapeShellArg agent.stateDir} -mindepth 1 -maxdepth 1 ! -uid 0 ! -uid ${toString agent.uid} -print -quit)
        [ -z "$strange" ] || {
          echo ${lib.escapeShellArg reason} >&2
          exit 1
        }
      '';
    };

  # Before the container, behind what oci-containers does: that has removed a former one, which may be in another network.
  prepare =
    agent:
    let
      mountPoint = lib.escapeShellArg "${agent.stateDir}/config.yaml";
      network = agent.network.name;
      wanted = lib.escapeShellArgs (networkArguments agent);
    in
    pkgs.writeShellApplication {
      name = "prepare-${agent.user}";
      runtimeInputs = [
        config.virtualisation.docker.package
        pkgs.coreutils
        pkgs.linuxquota
        pkgs.util-linux
      ];
      text = ''
        # The configuration is mounted over this file. The agent owns the directory, so the agent makes it.
        [ -e ${mountPoint} ] ||
          setpriv --reuid=${toString agent.uid} --regid=${toString agent.gid} --clear-groups touch ${mountPoint}
        ${setQuota agent}
        wanted=${lib.escapeShellArg wanted}
        found=$(docker network inspect --format '{{ index .Labels "tentaflake" }}' ${network} 2> /dev/null) || :
        if [ "$found" != "$wanted" ]; then
          docker network rm ${network} > /dev/null 2>&1 || :
          docker network create --label "tentaflake=$wanted" ${wanted} > /dev/null
        fi
      '';
    };

  mkService =
    agent:
    lib.nameValuePair agent.service.name {
      inherit (agent.service)
        partOf
        requires
        startLimitIntervalSec
        ;
      after = agent.service.after ++ loaded agent;
      wants = agent.service.wants ++ loaded agent;
      # The container keeps the file that it was started with, and the image.
      restartTriggers = [ config.environment.etc.${etcName agent}.source ] ++ streamOf agent;
      serviceConfig = {
        ExecStartPre = lib.mkMerge [
          (lib.mkBefore [ (lib.getExe (checkState agent)) ])
          (lib.mkAfter [ (lib.getExe (prepare agent)) ])
        ];
        Restart = lib.mkForce agent.service.restart; # oci-containers has "on-failure"
        RestartSec = agent.service.restartSec;
      };
      # A removed agent's unit is stopped once more, and nobody asks after its network then.
      postStop = lib.mkAfter "docker network rm ${agent.network.name} || true";
    };
in
{
  imports = [
    ./host.nix
    ./options.nix
  ];

  config = lib.mkIf (plan.agents != { }) {
    users.users = lib.mapAttrs mkUser plan.users;
    users.groups = plan.groups;

    systemd.tmpfiles.settings."10-tentaflake" = lib.listToAttrs (map mkDirectory plan.directories);

    environment.etc = forAgents mkConfig;

    virtualisation.oci-containers = {
      backend = "docker";
      containers = forAgents mkContainer;
    };
    systemd.services = lib.mkMerge [
      (forAgents mkService)
      {
        # Called with the firewall's guard, and not by it: this one waits for Docker.
        tentaflake-watch = {
          description = "Does every agent run that Docker takes for running?";
          path = [
            config.virtualisation.docker.package
            pkgs.procps
          ];
          script = plan.watch;
          serviceConfig.Type = "oneshot";
        };
      }
      (lib.mkIf (streams != { }) {
        # Not each agent at each of its starts: an image is gigabytes. Every start of an agent asks whether it is there.
        tentaflake-images = {
          description = "Images of the agents that are built on this host";
          after = [ "docker.service" ];
          requires = [ "docker.service" ];
          path = [ config.virtualisation.docker.package ];
          script = "set -o pipefail\n" + lib.concatStrings (lib.mapAttrsToList loadImage streams);
          serviceConfig = {
            Type = "oneshot";
            StateDirectory = "tentaflake-images";
          };
        };
      })
    ];
  };
}
