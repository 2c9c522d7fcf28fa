"""Published accuracies of the methods on the pairs of the benchmark, each with its source.

A table holds what its source ran itself, or what it quotes of papers that are no table here; what it repeats of another
table is left out. Tables of a method's own authors stand before those of others. "last" is the accuracy of the last
epoch, "best" the best one on the test set, which is 0.1 to 0.5 points higher: whichever of the two the source says, or
its code writes.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Number(NamedTuple):
    """A published accuracy."""

    pair: str  # name in `pairs.PAIRS`
    method: str  # a name in `published.PUBLISHED`; or "teacher"
    accuracy: float  # top-1 on the test set, in per cent; a mean where there is a deviation
    source: str  # a repository on GitHub, whose README has it unless more is said
    deviation: float | None = None  # over runs
    chosen: str = "last"  # of which epoch: "last", or the "best" on the test set


NETWORKS = {  # as the tables have them
    "w40-2": "wrn_40_2",
    "w40-1": "wrn_40_1",
    "w16-2": "wrn_16_2",
    "v8": "vgg8",
    "v13": "vgg13",
    "m1": "mobilenetv1",
    "m2": "mobilenetv2_half",
    "s1": "shufflenetv1",
    "s2": "shufflenetv2",
    **{f"r{depth}": f"resnet{depth}" for depth in (18, 20, 32, 34, 50, 56, 110, "8x4", "32x4")},
}


def of(pair: str, method: str) -> tuple[Number, ...]:
    """The published accuracies of a method on a pair, that of the method's own authors first."""
    return tuple(number for number in NUMBERS if (number.pair, number.method) == (pair, method))


def _table(source: str, chosen: str, text: str) -> Iterator[Number]:
    """The numbers of a table: a line of pairs, TEACHER>STUDENT, then lines of a method and its accuracies."""
    head, *lines = text.split("\n")[1:-1]
    pairs = ["-".join(NETWORKS[network] for network in pair.split(">")) for pair in head.split()]
    for line in lines:
        method, *cells = line.split()
        for pair, cell in zip(pairs, cells, strict=True):
            if cell != "-":
                accuracy, _, deviation = cell.partition("±")
                yield Number(pair, method, float(accuracy), source, float(deviation) if deviation else None, chosen)


NUMBERS: tuple[Number, ...] = (
    *_table(
        "HobbitLong/RepDistiller",
        "last",
        """
               w40-2>w16-2  w40-2>w40-1  r56>r20  r110>r20  r110>r32  r32x4>r8x4  v13>v8
teacher           75.61        75.61      72.34     74.31     74.31      79.42     74.64
cross_entropy     73.26        71.98      69.06     69.06     71.14      72.50     70.36
kd                74.92        73.54      70.66     70.67     73.08      73.33     72.98
fitnet            73.58        72.24      69.21     68.99     71.06      73.50     71.02
at                74.08        72.77      70.55     70.22     72.31      73.44     71.43
sp                73.83        72.43      69.67     70.04     72.69      72.94     72.68
cc                73.56        72.21      69.63     69.48     71.48      72.97     70.71
vid               74.11        73.30      70.38     70.16     72.61      73.09     71.23
rkd               73.35        72.22      69.61     69.25     71.82      71.90     71.48
pkt               74.54        73.45      70.34     70.25     72.61      73.64     72.88
ab                72.50        72.38      69.47     69.53     70.98      73.17     70.94
ft                73.25        71.59      69.84     70.22     72.37      72.86     70.58
fsp               72.91          -        69.95     70.11     71.89      72.62     70.23
nst               73.68        72.24      69.60     69.53     71.96      73.30     71.53
crd               75.48        74.14      71.16     71.46     73.48      75.51     73.94
""",
    ),
    *_table(
        "HobbitLong/RepDistiller",
        "last",
        """
               v13>m2  r50>m2  r50>v8  r32x4>s1  r32x4>s2  w40-2>s1
teacher         74.64   79.34   79.34    79.42     79.42     75.61
cross_entropy   64.60   64.60   70.36    70.50     71.82     70.50
kd              67.37   67.35   73.81    74.07     74.45     74.83
fitnet          64.14   63.16   70.69    73.59     73.54     73.73
at              59.40   58.58   71.84    71.73     72.73     73.32
sp              66.30   68.08   73.34    73.48     74.56     74.52
cc              64.86   65.43   70.25    71.14     71.29     71.38
vid             65.56   67.57   70.30    73.38     73.40     73.61
rkd             64.52   64.43   71.50    72.28     73.21     72.21
pkt             67.13   66.52   73.01    74.10     74.69     73.89
ab              66.06   67.20   70.65    73.55     74.31     73.34
ft              61.78   60.99   70.29    71.75     72.50     72.03
nst             58.16   64.96   71.28    74.12     74.68     74.89
crd             69.73   69.11   74.30    75.11     75.65     76.05
""",
    ),
    # Of the same networks in its own pairs.
    *_table(
        "HobbitLong/RepDistiller",
        "last",
        """
               r32x4>w16-2  r32x4>w40-2  w40-2>r8x4  w40-2>m2
teacher           79.42        79.42        75.61      75.61
cross_entropy     73.26        75.61        72.50      64.60
""",
    ),
    # torchvision's networks, which most use, and the usual MobileNet-V1.
    *_table(
        "WangYZ1608/Knowledge-Distillation-via-ND",
        "best",
        """
               r34>r18  r50>m1
teacher         73.31    76.16
cross_entropy   69.76    68.87
""",
    ),
    *_table(
        "megvii-research/mdistiller",
        "best",
        """
     r56>r20  r110>r32  r32x4>r8x4  w40-2>w16-2  w40-2>w40-1  v13>v8
dkd   71.97     74.11      76.32       76.23        74.81      74.68
""",
    ),
    # The head of the last column says MobileNet-V2 there, where KD's number is that for ShuffleNet-V2.
    *_table(
        "megvii-research/mdistiller",
        "best",
        """
     r32x4>s1  w40-2>s1  v13>m2  r50>m2  r32x4>s2
dkd    76.45     76.70    69.71   70.35    77.07
""",
    ),
    *_table(
        "megvii-research/mdistiller",
        "best",
        """
     r34>r18  r50>m1
kd    71.03    70.50
dkd   71.70    72.05
""",
    ),
    *_table(
        "zhengli97/CTKD",
        "best",
        """
      r56>r20  r110>r32  r110>r20  w40-2>w16-2  w40-2>w40-1  v13>v8
ctkd   71.19     73.52     70.99      75.45        73.93      73.52
""",
    ),
    # Its networks, of 120 epochs, are stronger than torchvision's.
    *_table(
        "zhengli97/CTKD",
        "best",
        """
               r34>r18
ctkd            71.32
teacher         73.96
cross_entropy   70.26
kd              70.83
dkd             71.13
""",
    ),
    *_table(
        "hunto/DIST_KD",
        "best",
        """
      w40-2>w40-1   r56>r20    r32x4>r8x4    r50>m2     r32x4>s1    r32x4>s2
dist  74.43±0.24  71.75±0.30  76.31±0.19  68.66±0.23  76.34±0.18  77.35±0.25
""",
    ),
    *_table(
        "hunto/DIST_KD",
        "best",
        """
               r34>r18  r50>m1
dist            72.07    73.24
teacher         73.31    76.16
cross_entropy   69.76    70.13
""",
    ),
    *_table(
        "dvlab-research/ReviewKD",
        "best",
        """
               r34>r18  r50>m1
reviewkd        71.61    72.56
cross_entropy   69.75    68.87
""",
    ),
    *_table(
        "clovaai/overhaul-distillation, 100 less the error",
        "best",
        """
               r50>m1
ofd             71.25
teacher         76.16
cross_entropy   68.87
""",
    ),
    *_table(
        "yzd-v/cls_KD",
        "best",
        """
               r34>r18  r50>m1
nkd             71.96    72.58
cross_entropy   69.90    69.21
""",
    ),
    *_table(
        "yzd-v/MGD",
        "best",
        """
     r34>r18  r50>m1
mgd   71.69    72.49
""",
    ),
    *_table(
        "ADLab-AutoDrive/ICKD, without KD beside it",
        "last",
        """
      w40-2>w16-2  w40-2>w40-1  r56>r20  r110>r20  r110>r32  r32x4>r8x4  v13>v8
ickd     75.64        74.33      71.76     71.68     73.89      75.25     73.42
""",
    ),
    # Of another protocol: see the record.
    *_table(
        "DefangChen/SimKD",
        "best",
        """
       r32x4>r8x4
simkd     78.08
""",
    ),
    *_table(
        "roymiles/Simple-Recipe-Distillation",
        "best",
        """
     r34>r18
srd   71.87
""",
    ),
    *_table(
        "zkxufo/TTM",
        "best",
        """
      w40-2>w16-2  w40-2>w40-1  r56>r20  r110>r20  r110>r32  r32x4>r8x4  v13>v8
ttm      76.23        74.32      71.83     71.46     73.97      76.17     74.33
wttm     76.37        74.58      71.92     71.67     74.13      76.06     74.44
dist     75.51        74.73        -       71.65     73.69        -       73.89
""",
    ),
    *_table(
        "zkxufo/TTM",
        "best",
        """
      v13>m2  r50>m2  r50>v8  r32x4>s1  r32x4>s2  w40-2>s1
ttm    68.98   69.24   74.87    74.18     76.57     75.39
wttm   69.16   69.59   74.82    74.37     76.55     75.42
dist   68.50     -     74.11      -         -       76.40
""",
    ),
    *_table(
        "zkxufo/TTM",
        "best",
        """
      r34>r18  r50>m1
wttm   72.19    73.09
""",
    ),
    *_table(
        "ismail31416/LumiNet",
        "best",
        """
         r56>r20  r110>r32  r32x4>r8x4  w40-2>w16-2  w40-2>w40-1  v13>v8
luminet   72.29     74.20      77.50       76.38        75.12      74.94
""",
    ),
    *_table(
        "ismail31416/LumiNet",
        "best",
        """
         r32x4>s1  w40-2>s1  v13>m2  r50>m2  r32x4>s2
luminet    76.66     76.95    70.50   70.97    77.55
""",
    ),
    *_table(
        "ismail31416/LumiNet",
        "best",
        """
         r34>r18  r50>m1
luminet   72.16    72.55
""",
    ),
    *_table(
        "JiamingLv/WKD",
        "best",
        """
              r34>r18  r50>m1  r32x4>r8x4  w40-2>s1
wkd_logits     72.49    73.17     76.53      76.72
wkd_features   72.50    73.12     76.77      77.36
wkd            72.76    73.69     77.28      77.50
""",
    ),
    # 480 epochs for MLKD, 960 where the student is a ShuffleNet.
    *_table(
        "sunshangquan/logit-standardization-KD",
        "best",
        """
         r32x4>r8x4  v13>v8  w40-2>w40-1  w40-2>w16-2  r56>r20  r110>r32  r110>r20
kd_ls       76.62     74.36     74.37        76.11      71.43     74.17     71.48
ctkd        73.39       -         -            -          -         -         -
dkd           -         -         -            -          -         -       71.06
dkd_ls      77.01     74.81     74.89        76.39      72.32     74.29     71.85
mlkd        77.08     75.18     75.35        76.63      72.19     74.11     71.89
mlkd_ls     78.28     75.22     75.56        76.95      72.33     74.32     72.27
""",
    ),
    *_table(
        "sunshangquan/logit-standardization-KD",
        "best",
        """
         r32x4>s2  r32x4>w16-2  r32x4>w40-2  w40-2>r8x4  w40-2>m2  v13>m2  r50>m2
kd           -        74.90        77.70        73.97      68.36      -       -
kd_ls      75.56      75.26        77.92        77.11      69.23    68.61   69.02
ctkd       75.37      74.57        77.66        74.61      68.34    68.50   68.67
dkd          -        75.70        78.46        75.56      69.28      -       -
dkd_ls     77.37      76.19        78.95        76.75      70.01    69.98   70.45
mlkd       78.44      76.52        79.26        77.33      70.78    70.57   71.04
mlkd_ls    78.76      77.53        79.66        77.68      71.61    70.94   71.19
""",
    ),
    *_table(
        "WangYZ1608/Knowledge-Distillation-via-ND",
        "best",
        """
      r56>r20  w40-2>w40-1  r32x4>r8x4  r50>m2  r32x4>s1  r32x4>s2
dist   71.78      74.42        75.79     69.17    75.23     76.08
dkd      -          -          75.44       -        -         -
kd++   72.53      74.59        75.54     70.10    75.45     76.42
""",
    ),
    *_table(
        "WangYZ1608/Knowledge-Distillation-via-ND",
        "best",
        """
      r34>r18  r50>m1
kd++   71.98    72.77
""",
    ),
    *_table(
        "papers, as the first README of WangYZ1608/Knowledge-Distillation-via-ND quotes them",
        "best",
        """
     r56>r20  w40-2>w40-1  r32x4>r8x4  r50>m2  r32x4>s1  r32x4>s2
ofd   70.98      74.33        74.95     69.04    75.98     76.82
""",
    ),
    # SD-KD; NKD and DKD are the plain ones.
    *_table(
        "shicaiwei123/SDD-CVPR2024",
        "best",
        """
     r32x4>s1  w40-2>s1  r50>m2  v13>m2  r32x4>s2  r50>v8
sdd    76.30     76.65    69.55   68.79    76.67    74.89
dkd      -         -        -       -        -      75.34
nkd    75.31     75.96    69.39   68.72    76.26    74.01
""",
    ),
    *_table(
        "shicaiwei123/SDD-CVPR2024",
        "best",
        """
     r50>m1
sdd   72.24
""",
    ),
    *_table(
        "shicaiwei123/SDD-CVPR2024, two runs that its scripts note",
        "best",
        """
     r32x4>r8x4    v13>v8
sdd  75.45±0.20  73.47±0.10
""",
    ),
    # FT's number is on ILSVRC 2015.
    *_table(
        "papers, as yoshitomo-matsubara/torchdistill quotes them",
        "best",
        """
          r34>r18
at         70.70
ft         71.43
crd        71.17
ickd       72.19
srd        71.63
kd_ls      71.42
""",
    ),
    *_table(
        "yoshitomo-matsubara/torchdistill",
        "best",
        """
               r34>r18
cross_entropy   69.76
kd              71.37
at              70.90
ft              71.56
crd             70.93
reviewkd        71.64
ickd            68.34
dist            71.95
srd             71.92
kd_ls           71.23
""",
    ),
    *_table(
        "OSVAI/NORM",
        "best",
        """
               w40-2>w16-2  w40-2>w40-1  r56>r20  r110>r20  r110>r32  r32x4>r8x4  v13>v8
cross_entropy     73.80        71.70      69.53     69.53     71.56      72.87     70.75
""",
    ),
    *_table(
        "OSVAI/NORM",
        "best",
        """
               v13>m2  r50>m2  r50>v8  r32x4>s1  r32x4>s2  w40-2>s1  r34>r18  r50>m1
cross_entropy   64.81   64.81   70.75    71.63     72.96     71.63    70.13    69.63
""",
    ),
    *_table(
        "papers, as OSVAI/NORM quotes them",
        "best",
        """
          w40-2>w16-2  w40-2>w40-1  r56>r20  r110>r32  r32x4>r8x4  v13>v8
srrl           -          74.64        -         -        75.39       -
reviewkd     76.12        75.09      71.89     73.89      75.63     74.84
simkd          -          75.56        -         -          -         -
""",
    ),
    *_table(
        "papers, as OSVAI/NORM quotes them",
        "best",
        """
          v13>m2  r50>m2  r32x4>s1  r32x4>s2  w40-2>s1
srrl         -       -      75.18       -         -
reviewkd   70.37   69.89    77.45     77.78     77.14
simkd        -       -      77.18       -         -
""",
    ),
    *_table(
        "papers, as OSVAI/NORM quotes them",
        "best",
        """
       r34>r18  r50>m1
cc      69.96      -
sp      70.62      -
kd      70.68    70.68
at      70.59    70.72
ofd     71.08      -
rkd     71.34    71.32
crd       -      71.40
srrl    71.73    72.49
simkd   71.66      -
""",
    ),
)
