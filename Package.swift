// swift-tools-version: 6.2
import PackageDescription

// The house of DESIGN: two processes that meet only in CLoopLagLayout. Every target stands for one job and may import
// only what is listed here; a policy test holds the sources to it.

let strict: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

let package = Package(
    name: "looplag",
    products: [
        .executable(name: "looplag", targets: ["LoopLagCLI"]),
        .library(name: "looplag-agent", type: .dynamic, targets: ["LoopLagPreload"]),
        .library(name: "LoopLag", targets: ["LoopLag"]),
        .library(name: "LoopLagNIO", targets: ["LoopLagNIO"]),
        .executable(name: "looplag-demo", targets: ["LoopLagDemo"]),
        .executable(name: "looplag-bench", targets: ["LoopLagBench"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/apple/swift-metrics", from: "2.13.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    ],
    targets: [
        // -- the host process ------------------------------------------------------------------------------------
        .target(name: "CLoopLagLayout"),
        .target(
            name: "CLoopLag", dependencies: ["CLoopLagLayout"],
            cSettings: [.define("_GNU_SOURCE"), .enableWarning("all"), .enableWarning("extra")],
            linkerSettings: [.linkedLibrary("pthread")]),
        .target(name: "LoopLagAgent", dependencies: ["CLoopLag"], swiftSettings: strict),
        // The same sources (a symbolic link) in Embedded Swift: what preload and attach load into foreign servers.
        .target(
            name: "LoopLagPreload", dependencies: ["CLoopLag"],
            swiftSettings: strict + [
                .enableExperimentalFeature("Embedded"),
                .define("LOOPLAG_EMBEDDED"),
                // One LLVM module, or each file keeps its own copies of what they share. Swift's functions run on the
                // watchdog alone, where nothing unwinds; the headers' inline functions would ask for tables for all.
                .unsafeFlags([
                    "-wmo", "-Osize", "-Xfrontend", "-enable-single-module-llvm-emission",
                    "-Xfrontend", "-function-sections", "-Xfrontend", "-disable-stack-protector",
                    "-Xcc", "-fno-asynchronous-unwind-tables",
                ]),
            ],
            linkerSettings: [
                .unsafeFlags(
                    [
                        "epoll_wait", "epoll_pwait", "epoll_pwait2", "epoll_create", "epoll_create1",
                        "poll", "ppoll", "select", "pselect", "__poll_chk", "__ppoll_chk", "pthread_cond_timedwait",
                    ]
                    .flatMap { ["-Xlinker", "--defsym=\($0)=lag_hook_\($0)"] }
                        + [
                            "-Xlinker", "--version-script=\(Context.packageDirectory)/Sources/CLoopLag/exports.map",
                            "-Xlinker", "-init=lag_preload_init", "-Xlinker", "-fini=lag_preload_exit",
                            "-Xlinker", "-Bsymbolic", "-Xlinker", "-z", "-Xlinker", "nodelete", "-Xlinker", "-z",
                            "-Xlinker", "now",
                            "-Xlinker", "--gc-sections", "-use-ld=lld", "-Xlinker", "--icf=all", "-Xlinker", "-O2",
                        ])
            ]),
        .target(name: "LoopLag", dependencies: ["LoopLagAgent"], swiftSettings: strict),
        .target(
            name: "LoopLagNIO",
            dependencies: [
                "LoopLag", .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
                .product(name: "Metrics", package: "swift-metrics"), .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: strict),

        // -- the command line ------------------------------------------------------------------------------------
        .systemLibrary(name: "CLibunwind", pkgConfig: "libunwind-generic", providers: [.apt(["libunwind-dev"])]),
        .systemLibrary(name: "CLibdw", pkgConfig: "libdw", providers: [.apt(["libdw-dev"])]),
        .systemLibrary(name: "CNcurses", providers: [.apt(["libncurses-dev"])]),
        .target(name: "LoopLagModel", swiftSettings: strict),
        .target(
            name: "LoopLagTelemetry", dependencies: ["LoopLagModel", "CLoopLagLayout"], swiftSettings: strict),
        .target(
            name: "LoopLagSymbols", dependencies: ["LoopLagModel", "CLibunwind", "CLibdw"], swiftSettings: strict),
        .target(name: "LoopLagDiagnosis", dependencies: ["LoopLagModel"], swiftSettings: strict),
        .target(
            name: "LoopLagReport", dependencies: ["LoopLagModel", "LoopLagDiagnosis"],
            resources: [.copy("looplag.report.schema.json")], swiftSettings: strict),
        // ptrace and process_vm_readv, which Swift's Glibc module leaves out.
        .target(
            name: "CLoopLagTrace", dependencies: ["CLoopLagLayout"],
            cSettings: [.define("_GNU_SOURCE"), .enableWarning("all"), .enableWarning("extra")]),
        .target(
            name: "LoopLagAttach",
            dependencies: [
                "LoopLagModel", "CLoopLagTrace", "CLoopLagLayout",
                // node's inspector speaks WebSocket.
                .product(name: "NIOCore", package: "swift-nio"), .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"), .product(name: "NIOWebSocket", package: "swift-nio"),
            ], swiftSettings: strict),
        .target(name: "LoopLagExport", dependencies: ["LoopLagModel", "LoopLagTelemetry"], swiftSettings: strict),
        .target(
            name: "LoopLagTop", dependencies: ["LoopLagModel", "LoopLagDiagnosis", "CNcurses"], swiftSettings: strict),
        .executableTarget(
            name: "LoopLagCLI",
            dependencies: [
                "LoopLagModel", "LoopLagTelemetry", "LoopLagSymbols", "LoopLagDiagnosis", "LoopLagReport",
                "LoopLagAttach", "LoopLagExport", "LoopLagTop",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ], swiftSettings: strict, plugins: ["LoopLagStamp"]),
        // Notes the commit at build time, for --version.
        .plugin(name: "LoopLagStamp", capability: .buildTool(), path: "Sources/LoopLagStamp"),

        // -- a server to try it on, and what it all costs ----------------------------------------------------------
        .executableTarget(
            name: "LoopLagDemo",
            dependencies: [
                "LoopLag", .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "NIOCore", package: "swift-nio"), .product(name: "NIOPosix", package: "swift-nio"),
            ], swiftSettings: strict),
        .executableTarget(
            name: "LoopLagBench",
            dependencies: [
                "LoopLagAgent", "CLoopLag", "LoopLagModel", "LoopLagTelemetry", "LoopLagSymbols", "LoopLagAttach",
            ], resources: [.embedInCode("torture.py")], swiftSettings: strict),
        .testTarget(
            name: "LoopLagAttachTests",
            dependencies: ["LoopLagAttach", "LoopLagCLI", "LoopLagModel", "LoopLagTelemetry", "CLoopLagLayout"],
            swiftSettings: strict),
        .testTarget(
            name: "LoopLagTopTests",
            dependencies: ["LoopLagTop", "LoopLagCLI", "LoopLagDiagnosis", "LoopLagModel", "LoopLagReport"],
            swiftSettings: strict),
        .testTarget(
            name: "EndToEndTests", dependencies: ["LoopLagModel", "LoopLagTelemetry"], swiftSettings: strict),
        .testTarget(name: "PolicyTests", swiftSettings: strict),
        .testTarget(
            name: "LoopLagTelemetryTests",
            dependencies: ["LoopLagTelemetry", "LoopLagModel", "LoopLagSymbols", "LoopLagReport", "CLoopLagLayout"],
            swiftSettings: strict),
        .testTarget(
            name: "LoopLagModelTests", dependencies: ["LoopLagModel", "CLoopLagLayout"], swiftSettings: strict),
        .testTarget(
            name: "LoopLagDiagnosisTests", dependencies: ["LoopLagDiagnosis", "LoopLagModel"], swiftSettings: strict),
        .testTarget(
            name: "LoopLagReportTests",
            dependencies: ["LoopLagReport", "LoopLagDiagnosis", "LoopLagModel", "LoopLagExport"],
            swiftSettings: strict),
        .testTarget(
            name: "LoopLagSymbolsTests", dependencies: ["LoopLagSymbols", "LoopLagModel"], exclude: ["Fixtures"],
            swiftSettings: strict),
        .testTarget(
            name: "LoopLagAgentTests", dependencies: ["LoopLagAgent", "CLoopLag"], swiftSettings: strict),
    ]
)
