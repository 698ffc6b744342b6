# The container images that the policy knows.
{
  # Hermes' own image of 2026-07-18. It starts as root under s6, which an agent's container may not (C1), so a later
  # change replaces it by a build of our own that runs under any uid.
  default = "docker.io/nousresearch/hermes-agent@sha256:4a2f23bd3ffaa6ee7b3be8a302a38be43ab0321a2988cd3fb16b7dd472dde812";
}
