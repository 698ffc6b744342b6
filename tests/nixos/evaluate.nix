# The configuration that this flake's modules come to for each of the hosts in a JSON file, as far as the tests compare it, and the
# plan that the policy makes of the same specs. A host: { modules (paths), host, agents (a list of specs), extra (options) }.
{
  nixpkgs,
  repository,
  hosts,
}:
let
  lib = import (nixpkgs + "/lib");
  policy = import (repository + "/modules/policy");

  configuration =
    {
      agents,
      host ? { },
      modules ? [ "modules" ],
      extra ? { },
    }:
    (lib.evalModules {
      modules = map (path: repository + "/${path}") modules ++ [
        ./options.nix
        extra
        {
          _module.args.pkgs = import ./packages.nix { inherit lib; };
          virtualisation.docker.package = (import ./packages.nix { inherit lib; }).docker;
          tentaflake = {
            agents = policy.byName agents;
            inherit host;
          };
        }
        (lib.optionalAttrs (modules == [ "modules" ]) { tentaflake.secretsRoot = "/flake"; })
      ];
    }).config;

  # What can be written as JSON; packages as their paths.
  shown = config: {
    inherit (config) assertions warnings networking;
    inherit (config.tentaflake) plan;
    inherit (config.users) users groups;
    etc = lib.mapAttrs (_: withValue) config.environment.etc;
    inherit (config.services) dnsmasq tailscale;
    inherit (config.systemd)
      slices
      sockets
      timers
      tmpfiles
      ;
    services = lib.mapAttrs (_: withoutUnset) config.systemd.services;
    docker = config.virtualisation.docker.daemon.settings;
    inherit (config.virtualisation.oci-containers) backend containers;
    inherit (config) age;
    initrd = config.boot.initrd.kernelModules;
  };

  # What is written as JSON to a file of the store.
  withValue = file: file // lib.optionalAttrs (file.source ? value) { json = file.source.value; };

  # The one option here that has no default upstream.
  withoutUnset =
    service:
    removeAttrs service (
      [ "path" ]
      ++ lib.optional (!(builtins.tryEval service.startLimitIntervalSec).success) "startLimitIntervalSec"
    );

  plain =
    value:
    if lib.isDerivation value then
      value.outPath
    else if lib.isList value then
      map plain value
    else if lib.isAttrs value then
      lib.mapAttrs (_: plain) value
    else
      value;
in
map (host: plain (shown (configuration host))) (lib.importJSON hosts)
