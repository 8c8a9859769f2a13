# One hop image from one static program: a docker-archive with one file that can be executed.
{
  dockerTools,
  runCommand,
  writeText,
  chainctl,
  revision,
}:
{
  kind,
  version,
  program,
  entrypoint,
  directories ? [ ],
  licence,
}:
let
  user = "65532";
  passwd = writeText "passwd" ''
    root:x:0:0:root:/:/nonexistent
    hop:x:${user}:${user}:hop:/:/nonexistent
  '';
  group = writeText "group" ''
    root:x:0:
    hop:x:${user}:
  '';
  nsswitch = writeText "nsswitch.conf" ''
    passwd: files
    group: files
    hosts: files
  '';

  root = runCommand "chainctl-${kind}-root" { } ''
    mkdir -p ${toString (map (path: "$out/${path}") ([ "dev" "etc" "proc" "run" "var" ] ++ directories))}
    install -D -m 0755 ${program} $out${builtins.head entrypoint}
    install -m 0644 ${passwd} $out/etc/passwd
    install -m 0644 ${group} $out/etc/group
    install -m 0644 ${nsswitch} $out/etc/nsswitch.conf
    ln -s ../run $out/var/run
  '';

  archive = dockerTools.buildLayeredImage {
    name = "chainctl/${kind}";
    tag = version;
    # Copied, as links of `contents` would drag the store along; then no path of the store may
    # be in `config` either. The store takes write permissions away, which are given back.
    fakeRootCommands = ''
      cp -r ${root}/. .
      chmod -R u+w .
    '';
    includeStorePaths = false;
    created = "1970-01-01T00:00:01Z";
    config = {
      Entrypoint = entrypoint;
      User = "${user}:${user}";
      WorkingDir = "/";
      StopSignal = "SIGTERM";
      Labels = {
        "chainctl.kind" = kind;
        "org.opencontainers.image.licenses" = licence;
        "org.opencontainers.image.revision" = revision;
        "org.opencontainers.image.title" = "chainctl ${kind}";
        "org.opencontainers.image.version" = version;
      };
    };
  };
in
{
  inherit root archive;
  contract = runCommand "chainctl-${kind}-contract" { nativeBuildInputs = [ chainctl ]; } ''
    chainctl images verify --archive ${archive} ${kind}
    touch $out
  '';
}
