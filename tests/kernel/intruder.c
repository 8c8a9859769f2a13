// What a client under an attacker's control would try, run in its place. Prints one line for
// each attempt, `NAME RESULT`, where RESULT is `ok` or the name of the error; makes the control
// socket that says that it is up; waits.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/sched.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void tell(const char *name, long result)
{
	printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "ok");
	fflush(stdout);
}

static void tell_clone(const char *name, unsigned long flags)
{
	long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		_exit(0);
	tell(name, pid);
	if (pid > 0)
		waitpid(pid, NULL, 0);
}

static void tell_clone3(void)
{
	struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
	long pid = syscall(SYS_clone3, &args, sizeof(args));

	if (pid == 0)
		_exit(0);
	tell("clone3", pid);
}

static void tell_tun(const char *name, const char *link)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	int device = open("/dev/net/tun", O_RDWR);

	strcpy(request.ifr_name, link);
	tell(name, device < 0 ? -1 : ioctl(device, TUNSETIFF, &request));
	close(device);
}

static void tell_mtu(const char *link)
{
	struct ifreq request = {.ifr_mtu = 9000};
	int any = socket(AF_INET, SOCK_DGRAM, 0);

	strcpy(request.ifr_name, link);
	tell("set-mtu", ioctl(any, SIOCSIFMTU, &request));
	tell("set-flags", ioctl(any, SIOCSIFFLAGS, &request));
	close(any);
}

static void answer(const char *link)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int door = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "/run/wireguard/%s.sock", link);
	tell("control-socket", bind(door, (struct sockaddr *)&address, sizeof(address)));
	listen(door, 1);
}

int main(int count, char **words)
{
	const char *own = words[1];

	(void)count;
	tell("fork", 0);
	tell_clone("clone-plain", 0);
	tell_clone("clone-user", CLONE_NEWUSER);
	tell_clone("clone-net", CLONE_NEWNET);
	tell_clone3();
	tell("unshare-user", unshare(CLONE_NEWUSER));
	tell("unshare-net", unshare(CLONE_NEWNET));
	tell("setns", setns(open("/proc/self/ns/net", O_RDONLY), CLONE_NEWNET));
	tell("inet", socket(AF_INET, SOCK_DGRAM, 0));
	tell("netlink-route", socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	tell("netlink-netfilter", socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER));
	tell("netlink-generic", socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC));
	tell("packet", socket(AF_PACKET, SOCK_DGRAM, 0));
	tell("raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	tell("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
	tell("inet6", socket(AF_INET6, SOCK_DGRAM, 0));
	tell("alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
	tell("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
	tell("bpf", syscall(SYS_bpf, 0, 0, 0));
	tell("io_uring", syscall(SYS_io_uring_setup, 1, 0));
	tell("keyctl", syscall(SYS_keyctl, 0, 0));
	tell("mount", mount("none", "/run/wireguard", "tmpfs", 0, ""));
	tell("mknod", mknod("/run/wireguard/mem", S_IFCHR, 0x101));
	tell("exec-shell", access("/bin/sh", X_OK));
	tell("write-root", open("/file", O_CREAT | O_WRONLY, 0600));
	tell("write-dev", open("/dev/file", O_CREAT | O_WRONLY, 0600));
	tell("write-sysctl", open("/proc/sys/net/ipv4/ip_forward", O_WRONLY));
	tell("write-control", open("/run/wireguard/file", O_CREAT | O_WRONLY, 0700));
	tell("exec-written", execl("/run/wireguard/file", "file", NULL));
	tell("open-null", open("/dev/null", O_RDWR));
	tell("signal-outside", kill(-1, 0));
	tell_tun("tun-own", own);
	tell_tun("tun-other-slot", "tunB");
	tell_tun("tun-new", "tunX");
	tell_mtu(own);
	answer(own);
	for (;;)
		sleep(1000);
}
