# The policy: agent specs in, one plan out. Pure Nix, `builtins` only, from Nix 2.8 on.
#
#   check { agents; host ? { }; }   => { errors; plan; }   never throws on a bad spec; reports all errors at once
#   plan  { agents; host ? { }; }   => the plan, or one `throw` that lists every error
#   byName agents                   => the specs by name, as the NixOS option `tentaflake.agents` takes them
#   defaultImage                    => the reference of the image that an agent has which names none
#   defaults                        => what is not said in a spec, its parts and the host's settings
#
# `agents` is a list of specs or, as in agents.nix, a function `{ mkHermesAgent }: [ … ]`. Each file here does one
# thing: spec.nix and host.nix say what may be written, rules.nix what may stand side by side, the rest what it becomes.
let
  inherit (builtins)
    concatMap
    concatStringsSep
    elemAt
    functionArgs
    genList
    head
    intersectAttrs
    isFunction
    isInt
    length
    listToAttrs
    removeAttrs
    tail
    ;
  inherit (import ./text.nix) key;
  hostSettings = import ./host.nix;
  parseSpec = import ./spec.nix;
  findConflicts = import ./rules.nix;
  inherit (import ./identity.nix) identityOf;
  types = import ./types.nix;

  # A spec is data and nothing more; the constructor is there to be read, and for a later version to extend.
  mkHermesAgent = spec: spec;

  listAgents =
    agents:
    let
      arguments = { inherit mkHermesAgent; };
      named = functionArgs agents;
    in
    if isFunction agents then
      agents (if named == { } then arguments else intersectAttrs named arguments)
    else
      agents;

  # [ "egress" 0 "network" ] => "egress[0].network"
  fieldName =
    path:
    let
      step = part: if isInt part then "[${toString part}]" else ".${key part}";
    in
    if path == [ ] then "" else key (head path) + concatStringsSep "" (map step (tail path));

  finish =
    error:
    let
      field = fieldName error.path;
      who = if error.agent == null then "host" else "agent ${error.agent}";
    in
    {
      inherit (error) agent value rule;
      inherit field;
      message = "${who}: ${
        if field == "" then "" else "${field} = "
      }${error.value}: ${error.rule}; ${error.fix}";
    };

  readAgent =
    index: raw:
    let
      parsed = parseSpec raw;
      spec = if parsed.value == null then { } else parsed.value;
      label = spec.name or "agents[${toString index}]";
    in
    {
      inherit index label spec;
      identity = if spec ? name && spec ? uid then identityOf { inherit (spec) name uid; } else null;
      stateDir =
        if !(spec ? stateDir) then
          null
        else if spec.stateDir != null then
          spec.stateDir
        else if spec ? name then
          "/var/lib/hermes-${spec.name}"
        else
          null;
      errors = map (error: error // { agent = label; }) parsed.errors;
    };

  check =
    {
      agents,
      host ? { },
    }:
    let
      parsedHost = hostSettings.parse host;
      hostValue = if parsedHost.value == null then { } else parsedHost.value;
      raw = types.listOf "agent specs" types.valid (listAgents agents);
      parsed =
        if raw.value == null then [ ] else genList (i: readAgent i (elemAt raw.value i)) (length raw.value);
      ofHost = error: error // { agent = null; };
      errors =
        map ofHost parsedHost.errors
        ++ map (error: ofHost error // { path = [ "agents" ]; }) raw.errors
        ++ concatMap (agent: agent.errors) parsed
        ++ findConflicts {
          host = hostValue;
          inherit (hostSettings) speechPort;
          agents = parsed;
        };
    in
    {
      errors = map finish errors;
      plan =
        if errors == [ ] then
          import ./plan.nix {
            host = hostValue;
            inherit (hostSettings) speechPort;
            agents = parsed;
          }
        else
          null;
    };

  plan =
    args:
    let
      result = check args;
      count = length result.errors;
    in
    if count == 0 then
      result.plan
    else
      throw "${toString count} error${if count == 1 then "" else "s"} in the agents of this host:${
        concatStringsSep "" (map (error: "\n  - ${error.message}") result.errors)
      }";

  defaultImage = (import ./images.nix).default;

  byName =
    agents:
    listToAttrs (
      map (spec: {
        inherit (spec) name;
        value = removeAttrs spec [ "name" ];
      }) (listAgents agents)
    );

  # Read back from the least that one can write, so that no default is written twice.
  defaults =
    let
      without = names: value: removeAttrs value names;
      least =
        (parseSpec {
          name = "x";
          egress = [ { network = "192.0.2.1/32"; } ];
          publish = [ 1 ];
          secrets = [
            {
              name = "x";
              file = "x.age";
            }
          ];
        }).value;
    in
    {
      agent = without [ "name" ] (parseSpec { name = "x"; }).value;
      destination = without [ "network" ] (head least.egress);
      published = without [ "port" "target" ] (head least.publish); # the target is the port
      secret = without [ "name" "file" ] (head least.secrets);
      host = (hostSettings.parse { }).value;
    };
in
{
  inherit
    byName
    check
    defaultImage
    defaults
    mkHermesAgent
    plan
    ;
}
