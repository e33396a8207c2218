"""What each architecture that we compile for has, and how many waves or blocks of a kernel fit on it at once.

RDNA and CDNA: a wave takes whole granules of the register file of its SIMD, a workgroup takes local memory of its
compute unit (of its pair of units, a WGP, on RDNA) and a barrier; the scarcest of these decides.

    by_vgpr = min(W, V // round_up(vgprs, granule))                    waves a SIMD
    groups  = min(S * by_vgpr // w, L // round_up(lds, L_granule), B)    workgroups a unit, w = ceil(threads / lanes)
    waves   = groups * w / S                                          waves a SIMD that are really there

with W the most waves a SIMD, V its registers a lane, S SIMDs, L bytes of local memory and B barriers of a unit.
NVIDIA: blocks a multiprocessor = min(64 // warps, 32, R // (32 * warps * round_up(regs, 8)), L // (bytes + 1 KiB)).

Sources: AMD's RDNA 3, RDNA 4 and CDNA 3 instruction set guides (gpuopen.com, GPU architecture documentation)
for register files, local memory and waves; LLVM's llvm.org/docs/AMDGPUUsage.html for granules and which gfx11 parts
have 1536 registers; gpuopen.com/learn/occupancy-explained for how the limits combine; NVIDIA's CUDA C++ Programming
Guide, "Technical Specifications per Compute Capability". Tested against the `Occupancy:` that clang prints.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeracle.ref.errors import unknown

KIB = 1024
STRIX_HALO_GBS = 256.0  # LPDDR5X-8000 on 256 bits: 8000e6 * 32 bytes; a published peak, not a measurement


@dataclass(frozen=True)
class Architecture:
    """One compile target and its limits.

    Args:
        name: as compilers call it.
        kind: "hip" or "cuda".
        number: what triton's GPUTarget takes: the compute capability, or the name.
        lanes: of a wave.
        matrix: its matrix instruction's short name: wmma, mfma, mma.
        max_waves: waves a SIMD (AMD), warps a multiprocessor (NVIDIA).
        registers: vector registers a lane of a SIMD (AMD), 32-bit registers of a multiprocessor (NVIDIA).
        granule: registers a lane that are handed out at once.
        simds: SIMDs that share local memory in the default mode: 4 of a WGP, 4 of a CDNA unit.
        local: bytes of local (shared) memory that they share.
        local_granule: bytes handed out at once.
        local_most: bytes that one workgroup may have.
        groups: workgroups of several waves that fit at most.
        dot2: it has v_dot2_f32_bf16.
        example: a part, and its units, for messages and the dry run.
    """

    name: str
    kind: str
    number: int | str
    lanes: int
    matrix: str
    max_waves: int
    registers: int
    granule: int
    simds: int
    local: int
    local_granule: int
    local_most: int
    groups: int
    dot2: bool
    example: tuple[str, int]

    @property
    def family(self) -> str:
        """The name that expectations use: gfx11, gfx12, gfx9 or sm."""
        return "sm" if self.kind == "cuda" else self.name[:5] if self.name[3] == "1" else "gfx9"


def _rdna(name: str, dot2: bool, part: str, units: int) -> Architecture:
    # 1536 registers a lane in wave32, handed out by 24; a WGP's 128 KiB, of which a workgroup may have 64.
    limits = (16, 1536, 24, 4, 128 * KIB, 512, 64 * KIB, 32)
    return Architecture(name, "hip", name, 32, "wmma", *limits, dot2, (part, units))


def _cdna(name: str, local: int, granule: int, part: str, units: int) -> Architecture:
    # 512 registers a lane, shared between v and acc, by 8; at most 8 waves.
    return Architecture(name, "hip", name, 64, "mfma", 8, 512, 8, 4, local, granule, local, 16, False, (part, units))


def _cuda(capability: int, shared: int, part: str, units: int) -> Architecture:
    limits = (64, 65536, 8, 1, shared * KIB, KIB, (shared - 1) * KIB, 32)
    return Architecture(f"sm_{capability}", "cuda", capability, 32, "mma", *limits, False, (part, units))


ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        _rdna("gfx1151", True, "Radeon 8060S Graphics", 20),
        _rdna("gfx1100", True, "Radeon RX 7900 XTX", 48),
        _rdna("gfx1201", True, "Radeon RX 9070 XT", 32),
        _cdna("gfx942", 64 * KIB, 512, "AMD Instinct MI300X", 304),
        _cdna("gfx950", 160 * KIB, 1280, "AMD Instinct MI355X", 256),
        _cuda(80, 164, "NVIDIA A100", 108),
        _cuda(90, 228, "NVIDIA H200", 132),
        _cuda(100, 228, "NVIDIA B200", 148),
    )
}


def architecture(name: str) -> Architecture:
    """Return an architecture by name.

    Raises:
        ValueError: it is none of ARCHITECTURES; the nearest is named.
    """
    if name not in ARCHITECTURES:
        raise unknown("arch", name, ARCHITECTURES)
    return ARCHITECTURES[name]


@dataclass(frozen=True)
class Occupancy:
    """How full a kernel can make the machine.

    Args:
        waves: waves a SIMD (AMD) or warps a multiprocessor (NVIDIA).
        most: what `waves` is at most there.
        groups: workgroups a unit, blocks a multiprocessor.
        limit: what is scarcest: registers, local memory, waves or barriers.
    """

    waves: float
    most: int
    groups: int
    limit: str

    @property
    def percent(self) -> float:
        """waves as a share of the most, in percent."""
        return 100.0 * self.waves / self.most


def _up(n: int, granule: int) -> int:
    return -(-n // granule) * granule


def waves_by_registers(arch: Architecture, vgprs: int, sgprs: int = 0) -> int:
    """Return how many waves of an AMD kernel its registers allow on one SIMD.

    Args:
        arch: of kind "hip".
        vgprs: vector registers a lane, accumulation registers included.
        sgprs: scalar registers; a limit on gfx9 alone, 0 to ignore.
    """
    waves = min(arch.max_waves, arch.registers // max(_up(vgprs, arch.granule), arch.granule))
    return min(waves, 800 // _up(sgprs, 16)) if sgprs and arch.family == "gfx9" else waves


def occupancy(arch: Architecture, threads: int, registers: int, local: int, sgprs: int = 0) -> Occupancy:
    """Return how many waves of a kernel run at once, by the formulas of this module's text.

    Args:
        arch: where.
        threads: of one workgroup (block).
        registers: vector registers a lane, or registers a thread.
        local: bytes of local (shared) memory of one workgroup.
        sgprs: scalar registers, AMD only.
    """
    per_group = -(-threads // arch.lanes)
    if arch.kind == "cuda":
        limits = {
            "waves": arch.max_waves // per_group,
            "groups": arch.groups,
            "registers": arch.registers // (arch.lanes * per_group * _up(max(registers, 1), arch.granule)),
            "shared memory": arch.local // (local + KIB),
        }
        limit = min(limits, key=lambda name: limits[name])
        return Occupancy(float(limits[limit] * per_group), arch.max_waves, limits[limit], limit)
    by_registers = waves_by_registers(arch, registers, sgprs)
    limits = {
        "waves": arch.simds * arch.max_waves // per_group,
        "registers": arch.simds * by_registers // per_group,
        "local memory": arch.local // _up(local, arch.local_granule) if local else 1 << 30,
        "barriers": arch.groups if per_group > 1 else 1 << 30,
    }
    limit = min(limits, key=lambda name: limits[name])
    groups = limits[limit]
    return Occupancy(groups * per_group / arch.simds, arch.max_waves, groups, limit)
