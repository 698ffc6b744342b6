# The container images that the policy knows.
{
  # The flake's own build of Hermes, for the official image starts as root, which an agent's container may not (C1). It is
  # never pulled: .invalid does not resolve (RFC 2606). On NixOS tentaflake.imageStreams has it under this name, and its
  # store path pins it; in test machines it is the archive of harness/guests/hermes_image.py, by its digest.
  default = "tentaflake.invalid/hermes:0.19.0";
}
