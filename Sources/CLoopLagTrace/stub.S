/* What the borrowed thread executes after the tracer has let go: it maps a control page and a stack of its own, calls
 * the target's dlopen and the agent's entry, reports, gives everything back, and ends in the C library's signal return
 * with the frame that the tracer has laid on the host's stack. All signals are blocked meanwhile.
 *
 * Copied into a memory file and mapped by the target: position-independent, no data but the parameters, which inject.c
 * writes at STUB_SPACE (offsets below are those of struct stub_parameters there).
 *
 *   rbx parameters   r12 control page   r13 our stack   r14 errno as it was   r15 its address
 */
#if defined(__x86_64__)

#define FRAME 0
#define CONTROL_OFFSET 8
#define DESCRIPTOR 16
#define DLOPEN 24
#define MODE 32
#define ENTRY 40
#define DLERROR 48
#define ERRNO_LOCATION 56
#define MUNMAP 64
#define VARIABLES_BYTES 72
#define STALE 80
#define PATH 120
#define VARIABLES 168

#define STATE 0
#define HANDLE 8
#define ANSWER 16
#define BEGAN 24
#define ENDED 32
#define MESSAGE 64
#define MESSAGE_LAST 447

/* In the frame: the address of the signal return, then a ucontext. */
#define FRAME_RAX (8 + 40 + 13 * 8)
#define FRAME_RIP (8 + 40 + 16 * 8)
#define FRAME_MASK (8 + 40 + 256)

#define STACK_BYTES 0x80000

    .section .rodata.lag_stub, "a", @progbits
    .p2align 4
    .globl lag_stub_begin
    .hidden lag_stub_begin
lag_stub_begin:
    cld
    leaq lag_stub_parameters(%rip), %rbx
    movq FRAME(%rbx), %rsp

    /* mmap(NULL, 4096, READ | WRITE, SHARED, descriptor, offset) */
    movl $9, %eax
    xorl %edi, %edi
    movl $4096, %esi
    movl $3, %edx
    movl $1, %r10d
    movq DESCRIPTOR(%rbx), %r8
    movq CONTROL_OFFSET(%rbx), %r9
    syscall
    cmpq $-4096, %rax
    ja .Lclose
    movq %rax, %r12
    movq $1, STATE(%r12)

    /* mmap(NULL, STACK_BYTES, READ | WRITE, PRIVATE | ANONYMOUS | NORESERVE | STACK, -1, 0) */
    movl $9, %eax
    xorl %edi, %edi
    movl $STACK_BYTES, %esi
    movl $3, %edx
    movl $0x24022, %r10d
    movq $-1, %r8
    xorl %r9d, %r9d
    syscall
    cmpq $-4096, %rax
    ja .Lno_stack
    movq %rax, %r13
    leaq STACK_BYTES(%rax), %rsp
    /* A guard page: an overflow must not reach a neighbour. */
    movl $10, %eax
    movq %r13, %rdi
    movl $4096, %esi
    xorl %edx, %edx
    syscall

    leaq BEGAN(%r12), %rsi
    call .Lclock
    call *ERRNO_LOCATION(%rbx)
    movq %rax, %r15
    movl (%rax), %r14d

    movq DLOPEN(%rbx), %rax
    testq %rax, %rax
    jz .Lloaded
    leaq PATH(%rbx), %rdi
    movl MODE(%rbx), %esi
    call *%rax
    movq %rax, HANDLE(%r12)
    testq %rax, %rax
    jz .Lrefused
    /* The first word of a link map is the load bias. */
    movq (%rax), %rax
    addq ENTRY(%rbx), %rax
    jmp .Lcall
.Lloaded:
    movq ENTRY(%rbx), %rax
.Lcall:
    leaq VARIABLES(%rbx), %rdi
    movq VARIABLES_BYTES(%rbx), %rsi
    call *%rax
    movl %eax, %eax
    movq %rax, ANSWER(%r12)
    jmp .Ldone

.Lrefused:
    movq $-1, ANSWER(%r12)
    movq DLERROR(%rbx), %rax
    testq %rax, %rax
    jz .Ldone
    call *%rax
    testq %rax, %rax
    jz .Ldone
    leaq MESSAGE(%r12), %rdi
    movl $MESSAGE_LAST, %ecx
.Lcopy:
    movb (%rax), %dl
    movb %dl, (%rdi)
    testb %dl, %dl
    jz .Ldone
    incq %rax
    incq %rdi
    decl %ecx
    jnz .Lcopy

.Ldone:
    movl %r14d, (%r15)
    leaq ENDED(%r12), %rsi
    call .Lclock
    movq FRAME(%rbx), %rsp
    movl $11, %eax
    movq %r13, %rdi
    movl $STACK_BYTES, %esi
    syscall
    jmp .Lreport

.Lno_stack:
    negq %rax
    movq %rax, HANDLE(%r12)
    movq $-2, ANSWER(%r12)
.Lreport:
    movq $2, STATE(%r12)
    movl $11, %eax
    movq %r12, %rdi
    movl $4096, %esi
    syscall
.Lclose:
    movl $3, %eax
    movq DESCRIPTOR(%rbx), %rdi
    syscall
    xorl %r12d, %r12d
.Lstale:
    movq STALE(%rbx,%r12,8), %rdi
    testq %rdi, %rdi
    js .Lnext
    movl $3, %eax
    syscall
.Lnext:
    incl %r12d
    cmpl $4, %r12d
    jb .Lstale

    /* A signal that came meanwhile and is not blocked by the host would have ended its wait: then it ends with EINTR,
     * and the handler runs on the way. A wait begun anew behind the handler might never end. rt_sigpending(-32(%rsp)) */
    movl $127, %eax
    leaq -32(%rsp), %rdi
    movl $8, %esi
    syscall
    testq %rax, %rax
    jnz .Lreturn
    movq FRAME_MASK(%rsp), %rax
    notq %rax
    testq -32(%rsp), %rax
    jz .Lreturn
    movq $-4, FRAME_RAX(%rsp)
    addq $2, FRAME_RIP(%rsp)

    /* munmap unmaps this very page and returns into the signal return that lies on the stack. */
.Lreturn:
    leaq lag_stub_begin(%rip), %rdi
    movl $4096, %esi
    jmp *MUNMAP(%rbx)

    /* CLOCK_MONOTONIC in nanoseconds into (%rsi). */
.Lclock:
    subq $24, %rsp
    pushq %rsi
    movl $228, %eax
    movl $1, %edi
    leaq 8(%rsp), %rsi
    syscall
    popq %rsi
    imulq $1000000000, (%rsp), %rax
    addq 8(%rsp), %rax
    movq %rax, (%rsi)
    addq $24, %rsp
    ret

    .p2align 10
lag_stub_parameters:
    .globl lag_stub_end
    .hidden lag_stub_end
lag_stub_end:

    .section .note.GNU-stack, "", @progbits
#endif
