// What Docker gives to a program unless it is asked for more: its filter of system calls and its capabilities.
//
// container COMMAND [WORD...]: becomes the command.
// container -NUMBER[,NUMBER...] COMMAND [WORD...]: under a filter that refuses these calls alone, with the capabilities that it has.
#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

// The filter allows what it lists; these are the others (x86-64; moby/profiles, seccomp/default.json, June 2026).
static const int refused[] = {
    SYS_syslog, SYS_uselib, SYS_ustat, SYS_sysfs, SYS_vhangup, SYS_pivot_root, SYS_acct, SYS_settimeofday, SYS_mount,
    SYS_umount2, SYS_swapon, SYS_swapoff, SYS_reboot, SYS_sethostname, SYS_setdomainname, SYS_iopl, SYS_ioperm,
    SYS_init_module, SYS_delete_module, SYS_quotactl, SYS_clock_settime, SYS_mbind, SYS_set_mempolicy, SYS_get_mempolicy,
    SYS_kexec_load, SYS_add_key, SYS_request_key, SYS_keyctl, SYS_migrate_pages, SYS_unshare, SYS_move_pages,
    SYS_perf_event_open, SYS_fanotify_init, SYS_open_by_handle_at, SYS_setns, SYS_kcmp, SYS_finit_module,
    SYS_kexec_file_load, SYS_bpf, SYS_userfaultfd, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
    SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_fspick, 438 /* pidfd_getfd */,
    440 /* process_madvise */, 442 /* mount_setattr */, 443 /* quotactl_fd */, 450 /* set_mempolicy_home_node */,
};

static const int capabilities[] = {
    CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FSETID, CAP_FOWNER, CAP_MKNOD, CAP_NET_RAW, CAP_SETGID, CAP_SETUID, CAP_SETFCAP,
    CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_SYS_CHROOT, CAP_KILL, CAP_AUDIT_WRITE,
};

static void need(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(125);
    }
}

static void drop_capabilities(void) {
    unsigned long long kept = 0;
    for (size_t i = 0; i < sizeof capabilities / sizeof *capabilities; i++)
        kept |= 1ULL << capabilities[i];
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if (!(kept >> capability & 1))
            need(!prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "PR_CAPBSET_DROP");
}

static void filter_calls(const int *calls, size_t count) {
    // A new namespace needs a privilege; clone3 does not show what it asks for, and seems to be missing.
    const unsigned namespaces = 0x7e020000;
    struct sock_filter filter[160] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 435 /* clone3 */, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
    };
    int at = 3;
    for (size_t i = 0; i < count; i++) {
        filter[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1);
        filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    }
    filter[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3);
    filter[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0]));
    filter[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, namespaces, 0, 1);
    filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {at, filter};
    need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
    need(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0), "PR_SET_SECCOMP");
}

int main(int count, char **words) {
    int calls[64];
    size_t few = 0;
    if (count > 1 && *words[1] == '-') {
        for (char *number = strtok(words[1] + 1, ","); number && few < 64; number = strtok(NULL, ","))
            calls[few++] = atoi(number);
        words++, count--;
    }
    if (count < 2) {
        fprintf(stderr, "container [-NUMBER,...] COMMAND [WORD...]\n");
        return 125;
    }
    if (few == 0 && geteuid() == 0)
        drop_capabilities();
    filter_calls(few ? calls : refused, few ? few : sizeof refused / sizeof *refused);
    execvp(words[1], words + 1);
    perror(words[1]);
    return 127;
}
