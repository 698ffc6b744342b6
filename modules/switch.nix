# What a switch is refused for before it changes anything, and the way back from one that fails or is killed (X2, X3). It is in the
# system's own switch-to-configuration, so that nixos-rebuild, a deployment tool and a person on the host all get it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (config.tentaflake) plan;
  agents = lib.attrValues plan.agents;

  state = "/var/lib/tentaflake";

  # One line for each agent that was ever here: its uid and its state directory. It outlives the agent.
  remember = agent: {
    name = "${state}/agents/${agent.name}";
    value."f+" = {
      mode = "0600";
      argument = "${toString agent.uid} ${agent.stateDir}";
    };
  };

  # Nobody inherits what a removed agent has left, by its uid or by its directory.
  checkKept = ''
    names=${lib.escapeShellArg " ${toString (map (agent: agent.name) agents)} "}
    for file in ${state}/agents/*; do
      [ -e "$file" ] || continue
      kept=''${file##*/}
      # Its line has no end, which is none to read(1).
      read -r kept_uid kept_directory < "$file" || [ -n "$kept_directory" ] || continue
      case $names in *" $kept "*) continue ;; esac
      # Deleted, or given away: then it is nobody's.
      [ "$(stat -c %u "$kept_directory" 2> /dev/null)" = "$kept_uid" ] || continue
      while read -r name uid directory; do
        if [ "$uid" = "$kept_uid" ]; then
          how="uid $uid, which is"
        else
          case $directory/ in
            "$kept_directory/") how="stateDir $directory, which is" ;;
            "$kept_directory/"*) how="stateDir $directory, which lies inside" ;;
            *)
              case $kept_directory/ in
                "$directory/"*) how="stateDir $directory, which encloses" ;;
                *) continue ;;
              esac
              ;;
          esac
        fi
        echo "agent $name has the $how that of an agent that is no more, and whose state is kept:" \
          "$kept, uid $kept_uid, $kept_directory. Choose another ''${how%% *}, or delete that state:" \
          "rm -r $kept_directory. Or give it away: chown -R" >&2
        exit 1
      done < ${
        pkgs.writeText "agents" (
          lib.concatMapStrings (agent: "${agent.name} ${toString agent.uid} ${agent.stateDir}\n") agents
        )
      }
    done
  '';

  # agenix goes on when it cannot decrypt a secret, and has removed the old value by then.
  checkSecrets =
    let
      ask =
        agent: secret:
        let
          what = "secret ${secret.name} of agent ${agent.name} (${secret.file}) cannot be decrypted: ";
          hint = "; encrypt it for this host's key, ${plan.host.secretsIdentity}.pub";
        in
        ''
          if ! said=$(${config.age.ageBin} --decrypt "''${keys[@]}" -o /dev/null -- ${
            lib.escapeShellArg "${config.age.secrets.${secret.id}.file}"
          } 2>&1); then
            said=''${said%%$'\n'*}
            echo ${lib.escapeShellArg what}"''${said#age: error: }"${lib.escapeShellArg hint} >&2
            refused=1
          fi
        '';
    in
    ''
      paths=(${lib.escapeShellArgs config.age.identityPaths}) keys=()
      for key in "''${paths[@]}"; do
        [ ! -s "$key" ] || keys+=(--identity "$key")
      done
      # A host that is just installed has no key yet.
      if [ "''${#keys[@]}" -gt 0 ]; then
        refused=0
        ${lib.concatMapStrings (agent: lib.concatMapStrings (ask agent) agent.secrets) agents}
        [ "$refused" = 0 ]
      fi
    '';

  # The table as it will be loaded, with what else the host has in the same file; and Docker's settings: a Docker that does not
  # take them is down before that is known, and every agent with it.
  checkTable = ''
    mkdir -p /var/lib/nftables
    touch /var/lib/nftables/deletions.nft # which the file includes
    ${lib.getExe' pkgs.nftables "nft"} --check --file ${lib.last config.systemd.services.nftables.serviceConfig.ExecStart}
  '';
  checkDocker = ''
    ${lib.getExe' config.virtualisation.docker.package "dockerd"} --validate --config-file=${
      (pkgs.formats.json { }).generate "daemon.json" config.virtualisation.docker.daemon.settings
    }
  '';

  # Puts the former system in force again, as a switch has noted it. Who calls it holds the lock.
  goBack = ''
    go_back() {
      read -r action former < ${state}/switching
      profile=/nix/var/nix/profiles/system
      if [ "$action" = switch ] && [ "$(readlink -f $profile)" != "$former" ]; then
        number=$(for link in "$profile"-*-link; do
          [ "$(readlink -f "$link")" != "$former" ] || echo "$link"
        done | sed 's/.*-\([0-9]*\)-link$/\1/' | sort -n | tail -n 1)
        if [ -n "$number" ]; then set -- --switch-generation "$number"; else set -- --set "$former"; fi
        ${lib.getExe' config.nix.package "nix-env"} --profile $profile "$@"
      fi
      TENTAFLAKE_GOES_BACK=1 NIXOS_NO_CHECK=1 "$former/bin/switch-to-configuration" "$action" || return
      rm ${state}/switching
      echo "$former is in force" >&2
    }
  '';
  tools = [
    pkgs.coreutils
    pkgs.gnused
    pkgs.util-linux
    config.systemd.package
  ];
  lock = "/run/tentaflake-switch.lock";

  # In the place of the system's own switch-to-configuration, which is beside it.
  switch = pkgs.writeShellScript "switch-or-go-back" ''
    here=$(${lib.getExe' pkgs.coreutils "readlink"} -f "$0")
    program=''${here%/*}/.switch-to-configuration-of-nixos
    case ''${1-} in switch | test) ;; *) exec "$program" "$@" ;; esac
    [ -z "''${TENTAFLAKE_GOES_BACK-}" ] || exec "$program" "$@"
    PATH=${lib.makeBinPath tools}:$PATH
    ${goBack}
    former=$(readlink -f /run/current-system)
    system=''${here%/bin/*}
    exec 9> ${lock}
    flock 9
    if [ ! -e ${state}/switching ]; then
      [ "$former" != "$system" ] || exec "$program" "$@" # there is nowhere else to go back to
      mkdir -p ${state}
      echo "$1 $former" > ${state}/switching.new
      sync ${state}/switching.new
      mv ${state}/switching.new ${state}/switching
      sync ${state}
    fi
    # It waits for the lock: so it goes on when this is done, or killed.
    systemctl start --no-block tentaflake-recover.service 2> /dev/null || :
    "$program" "$@"
    code=$?
    if [ "$code" = 0 ]; then
      rm ${state}/switching
      exit
    fi
    echo "the switch to $system has failed (exit code $code): going back" >&2
    go_back || echo "going back failed too; the next switch, or the next boot, tries again" >&2
    exit "$code"
  '';

  recover = pkgs.writeShellScript "recover" ''
    PATH=${lib.makeBinPath tools}:$PATH
    ${goBack}
    exec 9> ${lock}
    flock 9
    [ -e ${state}/switching ] || exit 0
    echo "a switch was killed: going back"
    go_back
  '';
in
{
  imports = [ ./options.nix ];

  config = {
    system.preSwitchChecks = {
      tentaflake-state = lib.mkIf (agents != [ ]) checkKept;
      tentaflake-secrets = lib.mkIf (plan.secrets != { } && config ? age) checkSecrets;
      tentaflake-table = lib.mkIf config.networking.nftables.enable checkTable;
      tentaflake-docker = lib.mkIf config.virtualisation.docker.enable checkDocker;
    };
    systemd.tmpfiles.settings."10-tentaflake-agents" = lib.mkIf (agents != [ ]) (
      lib.listToAttrs (map remember agents)
      // lib.genAttrs [ state "${state}/agents" ] (_: {
        d.mode = "0700";
      })
    );

    # NixOS takes away the configuration of an agent that is no more, and not the directory that it was in.
    system.activationScripts.tentaflake-configurations = lib.stringAfter [ "etc" ] ''
      names=${lib.escapeShellArg " ${toString (map (agent: agent.name) agents)} "}
      for directory in /etc/hermes/*; do
        case $names in
          *" ''${directory##*/} "*) ;;
          *) [ ! -d "$directory" ] || rmdir --ignore-fail-on-non-empty "$directory" ;;
        esac
      done
    '';

    system.activatableSystemBuilderCommands = lib.mkIf config.system.switch.enable (
      lib.mkAfter ''
        mv $out/bin/switch-to-configuration $out/bin/.switch-to-configuration-of-nixos
        install -m 0555 ${switch} $out/bin/switch-to-configuration
      ''
    );

    # Every switch starts it, and so does a boot. The switch by which it goes back leaves it alone.
    systemd.services.tentaflake-recover = {
      description = "Go back from a switch that was killed";
      wantedBy = [ "multi-user.target" ];
      after = [ "multi-user.target" ];
      restartIfChanged = false;
      unitConfig.X-StopOnRemoval = false;
      serviceConfig = {
        Type = "oneshot";
        ExecStart = recover;
      };
    };
  };
}
