# The speech server's place on the host (T3): it listens on loopback and on the gateways of agents that are granted it, so
# on any other address there is nothing to reach; and its socket takes packets from `clients` and the host alone. The firewall
# says the same once more.
{ port, agents }:
let
  inherit (builtins)
    concatMap
    fromJSON
    readFile
    ;
  service = fromJSON (readFile ../tts/unit.json);
  socket = fromJSON (readFile ../tts/socket.json);
  at = address: "${address}:${toString port}";
  listen = map at (
    [
      "127.0.0.1"
      "[::1]"
    ]
    ++ concatMap (agent: [
      agent.network.ipv4.gateway
      "[${agent.network.ipv6.gateway}]"
    ]) agents
  );
  clients = concatMap (agent: [
    agent.network.ipv4.subnet
    agent.network.ipv6.subnet
  ]) agents;
in
{
  inherit port listen clients;
  agents = map (agent: agent.name) agents;
  # The systemd units, but for what to run; none without somebody to speak for.
  units =
    if agents == [ ] then
      { }
    else
      {
        "tentaflake-tts.service" = service;
        "tentaflake-tts.socket" = socket // {
          Socket = socket.Socket // {
            ListenStream = listen;
            IPAddressAllow = [ "localhost" ] ++ clients;
          };
        };
      };
}
