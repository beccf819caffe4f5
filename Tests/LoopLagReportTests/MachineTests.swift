import LoopLagModel
import Testing

@testable import LoopLagReport

@Suite("The machine a report was made on")
struct MachineTests {
    private static func limits(_ memberships: String, _ files: [String: String]) -> Report.CgroupLimits? {
        MachineInfo.cgroupLimits(memberships: memberships, root: "/cg") { files[$0] }
    }

    @Test("This machine has a name, a kernel and processors")
    func current() {
        let machine = MachineInfo.current()
        #expect(!machine.hostname.isEmpty)
        #expect(machine.kernel.hasPrefix("Linux "))
        #expect(machine.cpus >= 1)
    }

    @Test("Version 2: the tightest limit on the way up counts")
    func version2() {
        let limits = Self.limits(
            "0::/a/b\n",
            [
                "/cg/a/b/cpu.max": "max 100000\n", "/cg/a/b/memory.max": "536870912\n",
                "/cg/a/cpu.max": "150000 100000\n",
                "/cg/a/memory.max": "max\n", "/cg/cpu.max": "400000 100000",
            ])
        #expect(limits == Report.CgroupLimits(cpus: 1.5, memoryBytes: 536_870_912))
    }

    @Test("Version 1: quota over period, and the largest number is no limit")
    func version1() {
        let limits = Self.limits(
            "5:memory:/x\n4:cpu,cpuacct:/x\n",
            [
                "/cg/cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n", "/cg/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
                "/cg/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
            ])
        #expect(limits == Report.CgroupLimits(cpus: 0.5, memoryBytes: nil))
    }

    @Test("A container that sees its host's path finds its own limits at the root of the mount")
    func container() {
        #expect(Self.limits("0::/docker/abc", ["/cg/cpu.max": "200000 100000"])?.cpus == 2)
        #expect(Self.limits("0::/../../x", ["/cg/cpu.max": "200000 100000"])?.cpus == 2)
    }

    @Test(
        "No limits, no files or nonsense give nothing", arguments: ["", "0::/", "nonsense", "::::", "0::/a\n1:cpu:/"])
    func nothing(memberships: String) {
        #expect(Self.limits(memberships, [:]) == nil)
        #expect(
            Self.limits(memberships, ["/cg/cpu.max": "oops", "/cg/memory.max": "-", "/cg/a/cpu.max": "1 0"]) == nil)
    }
}
