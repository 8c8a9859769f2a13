# The hop images: { openvpn, wireguard, pause }, each { archive, root, contract }.
#
# They keep the contract of the images that `chainctl images build` makes: the same entry points,
# user and places, so that a runtime cannot tell them apart. Here each is one static program.
{
  lib,
  pkgsStatic,
  callPackage,
  catatonit,
  openvpn,
  wireguard-go,
  chainctl,
  revision,
}:
let
  image = callPackage ./image.nix { inherit chainctl revision; };

  wireguard-static = wireguard-go.overrideAttrs (old: {
    # Go links statically as soon as it uses no C. The name stays: the sources go by it.
    env = (old.env or { }) // {
      CGO_ENABLED = 0;
    };
    doCheck = false;
  });
in
{
  openvpn = image {
    kind = "openvpn";
    inherit (openvpn) version;
    program = "${pkgsStatic.callPackage ./openvpn.nix { inherit openvpn; }}/bin/openvpn";
    entrypoint = [ "/usr/sbin/openvpn" ];
    # It refuses to start where it cannot write to its directory for temporary files.
    directories = [
      "run/openvpn"
      "tmp"
    ];
    licence = "GPL-2.0-only WITH openvpn-openssl-exception";
  };

  wireguard = image {
    kind = "wireguard";
    inherit (wireguard-go) version;
    program = lib.getExe' wireguard-static "wireguard-go";
    entrypoint = [ "/usr/bin/wireguard-go" ];
    directories = [ "run/wireguard" ];
    licence = "BSD-3-Clause AND MIT";
  };

  pause = image {
    kind = "pause";
    inherit (catatonit) version;
    # nixpkgs builds it static and checks that it is.
    program = lib.getExe' catatonit "catatonit";
    entrypoint = [
      "/usr/bin/catatonit"
      "-P"
    ];
    licence = "GPL-2.0-or-later AND LGPL-2.1-or-later";
  };
}
