"""Train the image tower against the names and the ImageNet teacher. The budget is wall-clock time, so it always ends.

Each core runs a process with one thread on its share of the batch: the processes meet once per step, which on a shared
machine loses far less than threads that meet in every operation.
"""

import json
import math
import time
from pathlib import Path

import open_clip
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lessons import Lessons, load_lessons
from monitor import Monitor
from muon import Muon
from shape import SHAPE
from teach import TEACHER_DIM
from torch import Tensor, nn

WORKERS = 2
BATCH = 256
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
TEACHER_WEIGHT = 5.0
# (share of the time at which it ends, share of the patches that are dropped): fast first, the full picture last.
PATCH_DROPOUT = [(0.40, 0.75), (0.88, 0.5), (1.0, 0.0)]


class Student(nn.Module):
    """open_clip's image tower with a linear head per lesson: `proj` for the names, `look` for the teacher."""

    def __init__(self):
        super().__init__()
        self.visual = open_clip.transformer.VisionTransformer(
            **SHAPE.image, output_dim=SHAPE.embed_dim, patch_dropout=0.5
        )
        self.proj, self.visual.proj = self.visual.proj, None
        self.look = nn.Linear(SHAPE.image["width"], TEACHER_DIM)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(15.0)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, 64, 64) to unit vectors (b, embed_dim) and (b, TEACHER_DIM)."""
        features = self.visual((x - MEAN) / STD)
        return F.normalize(features @ self.proj, dim=-1), F.normalize(self.look(features), dim=-1)


class Trainer:
    """Weights, their running average, the optimisers and the time that was spent."""

    def __init__(self, work: Path, minutes: float):
        torch.manual_seed(SHAPE.seed)  # the same weights in every worker
        self.file, self.budget, self.spent, self.steps = work / "train.pt", minutes * 60, 0.0, 0
        self.clock = time.monotonic()
        self.student, self.average = Student(), Student()
        blocks = [p for p in self.student.visual.transformer.parameters() if p.ndim == 2]
        rest = [p for p in self.student.parameters() if all(p is not q for q in blocks)]
        decayed = [p for p in rest if p.ndim > 1]
        plain = [p for p in rest if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimisers = [Muon(blocks, 0.02, weight_decay=0.05), torch.optim.AdamW(groups, 1.5e-3, betas=(0.9, 0.98))]
        self.rates = [[g["lr"] for g in o.param_groups] for o in self.optimisers]
        if self.file.exists():
            self.restore()
        torch.manual_seed(SHAPE.seed + WORKERS * self.steps + dist.get_rank())  # other views in every worker

    def parts(self) -> dict:
        """What a checkpoint holds besides the counters."""
        named = {"student": self.student, "average": self.average}
        return named | {f"optimiser{i}": o for i, o in enumerate(self.optimisers)}

    def restore(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.file)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.spent, self.steps = state["spent"], state["steps"]

    def save(self) -> None:
        """Write the checkpoint in one move, so that a kill leaves the old or the new one."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        partial = self.file.with_suffix(".partial")
        torch.save(state | {"spent": self.spent, "steps": self.steps}, partial)
        partial.rename(self.file)

    def schedule(self) -> None:
        """Warm-up and cosine over the time budget, patch dropout by phase."""
        done = min(self.spent / self.budget, 1)
        factor = min(1, (self.steps + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        self.student.visual.patch_dropout.prob = next(drop for end, drop in PATCH_DROPOUT if done <= end)

    def step(self, lessons: Lessons) -> dict[str, float]:
        """One batch; the losses."""
        self.schedule()
        images, label, looks = lessons.batch(BATCH // WORKERS)
        embedding, look = self.student(images)
        names = F.cross_entropy(self.student.logit_scale.exp() * embedding @ lessons.names.T, label)
        teacher = 1 - (look * looks).sum(-1).mean()
        (names + TEACHER_WEIGHT * teacher).backward()
        self.share()
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            self.student.logit_scale.clamp_(max=math.log(100))
            decay = min(0.998, (self.steps + 1) / (self.steps + 10))
            for slow, fast in zip(self.average.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        self.steps += 1
        return {"names": names.item(), "teacher": teacher.item()}

    def share(self) -> None:
        """Average gradients and clocks over the workers in one message; so all of them stop at the same step."""
        now = time.monotonic()
        gradients = [param.grad for param in self.student.parameters()]
        message = torch.cat([g.flatten() for g in gradients] + [torch.tensor([now - self.clock])]) / WORKERS
        dist.all_reduce(message)
        for gradient, mean in zip(gradients, message[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        self.spent, self.clock = self.spent + message[-1].item(), now


def worker(rank: int, work: Path, minutes: float, report_every: float) -> None:
    """Train until the budget is spent; the first worker reports and saves every few minutes while the others wait."""
    torch.set_num_threads(1)
    meeting = f"file://{work / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORKERS)
    trainer, lessons = Trainer(work, minutes), load_lessons(work)
    monitor = Monitor(work) if rank == 0 else None
    trainer.clock, losses, reported = time.monotonic(), [], trainer.spent
    while trainer.spent < trainer.budget:
        trainer.student.train()
        losses.append(trainer.step(lessons))
        if trainer.spent - reported < report_every and trainer.spent < trainer.budget:
            continue
        if monitor:
            trainer.save()
            mean = {k: round(sum(loss[k] for loss in losses) / len(losses), 3) for k in losses[0]}
            line = {"minutes": round(trainer.spent / 60, 1), "steps": trainer.steps, **mean, **monitor(trainer.average)}
            with (work / "train.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        losses, reported = [], trainer.spent
    dist.barrier()
    dist.destroy_process_group()


def save(work: Path, minutes: float, report_every: float = 300) -> None:
    """Train the image tower: checkpoints in `train.pt`, a line in `train.jsonl` with each."""
    (work / "meeting").unlink(missing_ok=True)
    torch.multiprocessing.spawn(worker, (work, minutes, report_every), nprocs=WORKERS)
