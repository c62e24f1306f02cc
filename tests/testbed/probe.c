/* The smallest guest: proves that the testbed's KVM enters a guest and exits.
 *
 * Three instructions in real mode: add bl to al, write al to port 0x80, halt.
 * Prints "kvm: port 0x80 got 42" and exits 0. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static const uint8_t GUEST[] = {
    0x00, 0xd8, /* add %bl, %al */
    0xe6, 0x80, /* out %al, $0x80 */
    0xf4,       /* hlt */
};
enum { GUEST_ADDRESS = 0x1000, PAGE = 4096 };

static int checked(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

int main(void)
{
    int kvm = checked(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = checked(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    uint8_t *ram = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memcpy(ram, GUEST, sizeof GUEST);
    struct kvm_userspace_memory_region region = {
        .guest_phys_addr = GUEST_ADDRESS, .memory_size = PAGE, .userspace_addr = (uintptr_t)ram};
    checked(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");

    int vcpu = checked(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    int run_size = checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_sregs sregs;
    checked(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    checked(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = GUEST_ADDRESS, .rax = 40, .rbx = 2, .rflags = 2};
    checked(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

    checked(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x80) {
        fprintf(stderr, "kvm: exit reason %u instead of a port write\n", run->exit_reason);
        return 1;
    }
    printf("kvm: port 0x80 got %u\n", *((uint8_t *)run + run->io.data_offset));
    checked(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    return run->exit_reason == KVM_EXIT_HLT ? 0 : 1;
}
