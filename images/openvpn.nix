# OpenVPN as a client only, one static file: no plug-ins, no PKCS #11, no systemd, no kernel
# module, and of compression the framing alone, which many providers' servers still use.
# To be called with pkgsStatic, and with the `openvpn` of the other package set for its sources.
{
  lib,
  stdenv,
  pkg-config,
  libcap_ng,
  openssl,
  openvpn,
}:
stdenv.mkDerivation {
  pname = "openvpn-hop";
  inherit (openvpn) version src;

  nativeBuildInputs = [ pkg-config ];
  buildInputs = [
    libcap_ng
    openssl
  ];

  configureFlags = [
    "--disable-dco"
    "--disable-debug"
    "--disable-lz4"
    "--disable-lzo"
    "--disable-plugin-auth-pam"
    "--disable-plugin-down-root"
    "--disable-plugins"
    "--disable-unit-tests"
    "--enable-comp-stub"
  ];
  # libtool takes `-static` to mean its own libraries only.
  makeFlags = [ "LDFLAGS=-all-static" ];
  enableParallelBuilding = true;

  installPhase = ''
    runHook preInstall
    install -D -m 0755 src/openvpn/openvpn $out/bin/openvpn
    runHook postInstall
  '';

  meta = {
    description = "OpenVPN, reduced to what a hop needs";
    homepage = "https://openvpn.net/";
    license = lib.licenses.gpl2Only;
    platforms = lib.platforms.linux;
    mainProgram = "openvpn";
  };
}
