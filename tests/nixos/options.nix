# The options of NixOS and agenix that this flake's modules set or read, typed as upstream types them, so that the modules can be
# evaluated with nixpkgs' lib alone. An option that is not here does not exist to the tests: look it up before it is added.
{ lib, ... }:
let
  inherit (lib) mkOption types;

  option = type: mkOption { inherit type; };
  package = (import ./packages.nix { inherit lib; }).package;
  optional = type: default: mkOption { inherit type default; };
  flag = optional types.bool false;
  many = type: optional (types.attrsOf (types.submodule type)) { };
  strings = optional (types.listOf types.str) [ ];
  ports = optional (types.listOf types.port) [ ];

  # A setting of a unit file: definitions have to be equal, unless one is a list, which is one line for each element
  # (nixos/lib/systemd-unit-options.nix).
  setting = lib.mkOptionType {
    name = "systemd option";
    merge =
      loc: definitions:
      if lib.any (definition: lib.isList definition.value) definitions then
        lib.concatMap (definition: lib.toList definition.value) definitions
      else
        lib.mergeEqualOption loc definitions;
  };
  section = optional (types.attrsOf setting) { };

  unit = {
    description = optional types.singleLineStr "";
    after = strings;
    before = strings;
    requires = strings;
    partOf = strings;
    wants = strings;
    wantedBy = strings;
    unitConfig = section;
  };
  service.options = unit // {
    startLimitIntervalSec = option types.int;
    path = optional (types.listOf types.package) [ ];
    environment = optional (types.attrsOf (
      types.nullOr (
        types.oneOf [
          types.str
          types.path
          types.package
        ]
      )
    )) { };
    restartIfChanged = optional types.bool true;
    script = optional types.lines "";
    postStop = optional types.lines "";
    serviceConfig = section;
    restartTriggers = optional (types.listOf types.unspecified) [ ];
    reloadTriggers = optional (types.listOf types.unspecified) [ ];
  };

  user.options = {
    uid = optional (types.nullOr types.int) null;
    isSystemUser = flag;
    isNormalUser = flag;
    description = optional types.singleLineStr "";
    group = optional types.str "";
    extraGroups = strings;
    home = optional types.path "/var/empty";
    createHome = flag;
  };
  group.options = {
    gid = optional (types.nullOr types.int) null;
    members = strings;
  };

  etc =
    { config, ... }:
    {
      options = {
        text = optional (types.nullOr types.lines) null;
        source = option types.path;
        mode = optional types.str "symlink";
        user = optional types.str "+0";
        group = optional types.str "+0";
      };
      config.source = lib.mkIf (config.text != null) (
        "/nix/store/${builtins.hashString "sha256" config.text}-etc"
      );
    };

  container =
    { name, ... }:
    {
      options = {
        image = option types.str;
        pull = optional (types.enum [
          "always"
          "missing"
          "never"
          "newer"
        ]) "missing";
        serviceName = optional types.str "docker-${name}";
        autoStart = optional types.bool true;
        autoRemoveOnStop = optional types.bool true;
        log-driver = optional types.str "journald";
        user = optional (types.nullOr types.str) null;
        workdir = optional (types.nullOr types.str) null;
        hostname = optional (types.nullOr types.str) null;
        cmd = strings;
        environment = optional (types.attrsOf types.str) { };
        ports = strings;
        networks = strings;
        extraOptions = strings;
      };
    };

  table =
    { name, ... }:
    {
      options = {
        enable = optional types.bool true;
        name = optional types.str name;
        family = option (
          types.enum [
            "ip"
            "ip6"
            "inet"
            "arp"
            "bridge"
            "netdev"
          ]
        );
        content = option types.lines;
      };
    };

  tmpfile.options = {
    mode = optional types.str "-";
    user = optional types.str "-";
    group = optional types.str "-";
    age = optional types.str "-";
    argument = optional types.str "";
  };

  # agenix, modules/age.nix
  ageSecret =
    { name, ... }:
    {
      options = {
        file = option types.path;
        name = optional types.str name;
        path = optional types.str "/run/agenix/${name}";
        mode = optional types.str "0400";
        owner = optional types.str "0";
        group = optional types.str "0";
      };
    };

  freeform = optional (types.attrsOf types.anything) { };
in
{
  options = {
    assertions = optional (types.listOf types.unspecified) [ ];
    warnings = strings;

    boot.initrd.kernelModules = strings;
    fileSystems = many {
      freeformType = types.attrsOf types.anything;
      options.options = strings;
    };
    nix.package = optional types.package (package "nix");
    nix.settings.allowed-users = optional (types.listOf types.str) [ "*" ];
    networking.dhcpcd.denyInterfaces = strings;
    networking.networkmanager.unmanaged = strings;
    systemd.network.networks = many {
      options.matchConfig = section;
      options.linkConfig = section;
    };

    environment.etc = many etc;
    environment.systemPackages = optional (types.listOf types.package) [ ];

    networking.hostName = optional types.str "nixos";
    networking.firewall.enable = optional types.bool true;
    networking.firewall.allowedTCPPorts = ports;
    networking.firewall.allowedUDPPorts = ports;
    networking.nftables.enable = flag;
    networking.nftables.tables = many table;

    services.dnsmasq.enable = flag;
    services.dnsmasq.settings = freeform;
    services.tailscale.enable = flag;
    services.tailscale.interfaceName = optional types.str "tailscale0";

    system.activationScripts = optional (types.attrsOf types.unspecified) { };
    system.activatableSystemBuilderCommands = optional types.lines "";
    system.preSwitchChecks = optional (types.attrsOf types.str) { };
    system.switch.enable = optional types.bool true;
    systemd.package = optional types.package (package "systemd");
    systemd.services = many service;
    systemd.slices = many {
      options = unit // {
        sliceConfig = section;
      };
    };
    systemd.sockets = many {
      options = unit // {
        listenStreams = strings;
        socketConfig = section;
      };
    };
    systemd.timers = many {
      options = unit // {
        timerConfig = section;
      };
    };
    systemd.tmpfiles.settings = optional (types.attrsOf (
      types.attrsOf (types.attrsOf (types.submodule tmpfile))
    )) { };

    users.users = many user;
    users.groups = many group;

    virtualisation.docker.enable = flag;
    virtualisation.docker.package = option types.package;
    virtualisation.docker.extraPackages = optional (types.listOf types.package) [ ];
    virtualisation.docker.daemon.settings = mkOption {
      default = { };
      type = types.submodule {
        freeformType = types.attrsOf types.anything;
        options.live-restore = optional types.bool true;
      };
    };
    virtualisation.oci-containers.backend = optional (types.enum [
      "podman"
      "docker"
    ]) "podman";
    virtualisation.oci-containers.containers = many container;

    age.ageBin = optional types.str "age";
    age.identityPaths = optional (types.listOf types.path) [ ];
    age.secrets = many ageSecret;
  };
}
