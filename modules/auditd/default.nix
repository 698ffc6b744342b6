# The audit daemon: records what happens in the agents' state directories. What is audited is in the plan
# (modules/policy/plan.nix, `audit`); how it is confined is in unit.json, which the Debian guest reads as well.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.hermes-auditd;
  unit = builtins.fromJSON (builtins.readFile ./unit.json);
  settingsFormat = pkgs.formats.json { };

  limits = {
    maxBytes = lib.mkOption {
      type = lib.types.nullOr (lib.types.ints.between 1048576 1099511627776);
      default = null;
      example = 1073741824;
      description = "Bytes of recorded events. Older ones are removed. Null for the default of 256 MiB.";
    };
    maxAgeDays = lib.mkOption {
      type = lib.types.nullOr lib.types.ints.positive;
      default = null;
      example = 30;
      description = "Days after which events are removed. Null for the default of 90.";
    };
    maxWatches = lib.mkOption {
      type = lib.types.nullOr lib.types.ints.positive;
      default = null;
      example = 100000;
      description = "Directories watched; those beyond are only looked at from time to time. Null for the default of 65536.";
    };
    exclude = lib.mkOption {
      type = lib.types.nullOr (lib.types.listOf lib.types.str);
      default = null;
      example = [ "cache/*" ];
      description = "Globs of paths, relative to the state directory, that are not recorded. Null for none.";
    };
  };

  directory = lib.types.submodule {
    options = limits // {
      agent = lib.mkOption {
        type = lib.types.str;
        example = "coding";
        description = "The agent's name.";
      };
      path = lib.mkOption {
        type = lib.types.path;
        example = "/var/lib/hermes-coding";
        description = "Its state directory. Symbolic links and mount points are followed to where they lead.";
      };
      uid = lib.mkOption {
        type = lib.types.ints.unsigned;
        example = 1900000000;
        description = "Its user.";
      };
    };
  };

  given = lib.filterAttrs (_: value: value != null);
  settings = given cfg.limits // {
    directories = map given cfg.directories;
    metrics = "/run/hermes-auditd/metrics.prom";
  };
in
{
  options.services.hermes-auditd = {
    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.python3Packages.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.python3Packages.callPackage ./package.nix { }";
      description = "The package that has hermes-auditd and hermes-audit.";
    };

    directories = lib.mkOption {
      type = lib.types.listOf directory;
      default = [ ];
      example = lib.literalExpression "(policy.plan { agents = [ ]; }).audit.directories";
      description = "What is watched: `audit.directories` of the plan. With none, there is no daemon.";
    };

    limits = lib.mkOption {
      type = lib.types.submodule { options = limits; };
      default = { };
      example = {
        maxAgeDays = 30;
      };
      description = "What an agent may use of the record, where its own entry says nothing.";
    };

    readers = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "alice" ];
      description = "Users who may read the record with hermes-audit: the members of the group hermes-audit.";
    };
  };

  config = lib.mkIf (cfg.directories != [ ]) {
    users.users.hermes-auditd = {
      isSystemUser = true;
      group = "hermes-audit";
      description = "Audit daemon of the Hermes agents";
    };
    users.groups.hermes-audit.members = cfg.readers;

    environment.systemPackages = [ cfg.package ];
    environment.etc."hermes-auditd/config.json".source =
      settingsFormat.generate "hermes-auditd.json" settings;

    systemd.services.hermes-auditd = {
      description = unit.Unit.Description;
      startLimitIntervalSec = lib.toInt unit.Unit.StartLimitIntervalSec;
      wantedBy = [ unit.Install.WantedBy ];
      reloadTriggers = [ config.environment.etc."hermes-auditd/config.json".source ];
      serviceConfig = lib.mkMerge [
        unit.Service
        {
          ExecStart = "${lib.getExe' cfg.package "hermes-auditd"} --config /etc/hermes-auditd/config.json";
          ExecReload = "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID";
        }
      ];
    };
  };
}
