# An image of the supervisor, for those who run everything under Docker.
{
  lib,
  dockerTools,
  chainctl,
}:
dockerTools.streamLayeredImage {
  name = "chainctl/supervisor";
  tag = chainctl.version;
  contents = [ dockerTools.caCertificates ];
  config = {
    Entrypoint = [ (lib.getExe chainctl) ];
    Cmd = [ "serve" ];
    Env = [ "PATH=${chainctl}/bin" ];
    StopSignal = "SIGTERM";
  };
}
