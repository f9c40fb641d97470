"""Codebooks: a few vectors that stand for many, found by k-means.

Source: vector quantisation of VQ4DiT (arXiv 2408.17131). After a rotation of blocks, rows over their RMS look like
normal numbers in every layer, so one codebook fits them all; it is where the fit to a layer begins.
"""
# M vectors   D numbers of each   C vectors of the codebook

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 12  # vectors compared at once: 4 MB of distances for 256, twice as fast as 64 MB
SAMPLE = 1 << 17  # vectors that k-means looks at: 500 for each of 256 leave 0.2 % of error
BOOKS: dict[int, tuple[int, int]] = {2: (256, 4), 3: (64, 2)}  # bits per weight: C, D

# For normal numbers of variance 1: step, and the vectors in steps, int8 in two hexadecimal digits. k-means over 2^17
# new vectors a round, then 30 rounds over 2^19. Mean squared error on others: 0.0963 and 0.0297; of single numbers at
# the same bits it is 0.1175 and 0.0345.
NORMAL: dict[int, tuple[float, tuple[str, ...]]] = {
    2: (0.02048698, (
        "0201fffedcfeff09f8de05172afb0604ee050fdbf608ea24191def0ef8210c1a09fb27130fda10f816f0e81a130322ea10240cee",
        "f5e1e10311f302d8e9f124fcf323e501f21924fde7fbe6e31de5eaf40703d2fbe8e006e810fd092c011aeddcdd2404f3e6001728",
        "23191e10da03d7092b0eede1befb02ee08f6d5cc2ad2161801d3f1cbc8d4f80703e035dbfd4804feca23fa23f2b8f5f6170f17be",
        "3805d00ed3ebef361319c72606d62e2a2cea39fac2162509e4c32400f23111ca1ac0e6131923c2f3203ee7ec3b14002d4522fc02",
        "c8111ed73ef716d81720ed40040f4bf3fcd5d7321020273af238e72f38231ce0e81bc1e244eaf72016e3bc111d3f0626f0f9bc25",
        "d6d11b281fd1fc38c221ddf3f7dd0747baf91123ddced8de32f52a2eed14044cf00f36c7eaedb5f1ea1e421f093c3510fadd4a03",
        "0dcdc7e5d121eec8fce818b50e3532dcd70546f2f50cf3b0e5bced2344d20af6cfedfebf1c31fbc2d4e331d4bce228fdbcefd9e5",
        "d9ef4122e929bc13f342dfd8fdfadf4ef8be19d135d7e6d22bf1d73cd3421814de3834edb1ffe5152d4616fd2df7bee151f8ebed",
        "05b1121d2bd11acc1eb3f8e8d847e407ced9ca1850ff210618ba2ff7d213d43a0a4ad30f16034f233735d818200040c9fbf9334a",
        "2f2046f93fd2d203151ec9c223fe0b5529f6eeaeee431c39c7be05dbd8f7c7bdab3006f4c91f2c41f2b4bf044c24cde30a0c9906",
        "402e352cd65a07dbba0daf07521b00be06f2a1cac4f01e5ceecdd9a21a640ece36c8541a9a07f4c7a7c6fe33f86d2cf9f22abd57",
        "bf301eae8af60f04f26f022a26c22757fc192e9448b2e632054ba5e81ef9a042f3ee6acb4d20ce483e9a140dc49cdef56e0b1430",
        "d0b651190242ff67e8fd770f981236e1c4f333a32a73f80636d057d024b901a2d2b445cdeb8c21eed5c2f061f995e3c92358d745",
        "cf98152a25f976f6aa37ca2e93cedffd5dcd2b31363d2bac05d6643ec343fa56b3235a14590e49d118b0b436079df84cca1e5dc7",
        "643b2ffb02d045a353e8fc5bc44cb1f0a0e5402b5b4ff4dde5e0b1597518da101bccd969eb37b5ad58e2b9304132105f9ad71bc7",
        "2dc9bcb0ddbf395664e0fab9f33f6df500b263f00684e90fb4d4a5f249169b0e2c55d3b9d6b90fa075d1f20d3ef22d9b7c0610e7",
        "97331d2b2e9ebdf4183e9c2c5c50fc279704fa49e8d48d1aa7ecbc3ba5ac21fb04ee0581af4ce3c62bd290fa2226ef8bac13b2c8",
        "22982acaef52f79e23632f3b1c316b2ef82f3d6801f3177f36014a5cf25641b91b2665bd64c535e8cd06e474325c4cf359035c17",
        "b2df61eb1498402ade1087e0e8baa1cd4058b701b368f5124e11c3abda594d2df37bd8eb1e10d37753a4ecd800fcba90d806624f",
        "c9a4c432b05836e867e5b7e02b1e90cfc40ce88cd61e8e2edf65c033acbed6b98321d9ff",
    )),
    3: (0.02170552, (
        "05fff106f2f2041405ec170918f3f01bdefbf9db152112dcdc12e2e3ff2a2afe2a162ae2e22bcbeec70806c6eac90e3b2731f23e",
        "3dee22caca22d1d441084024d23eb6e045d4f6aeadfa17aead18234f0257d5b459f437b84140e156b536b9c35b17dd90088a92d3",
        "70d8b85f870419775cb0693e4666e67a378f8f38af9f7f0a",
    )),
}  # fmt: skip


def universal(bits: int) -> Tensor:
    """[C, D] float32 on the CPU, for normal numbers of variance 1."""
    step, rows = NORMAL[bits]
    steps = torch.frombuffer(bytearray.fromhex("".join(rows)), dtype=torch.int8)
    return steps.reshape(BOOKS[bits]).float() * step


def nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """Number of the nearest vector of the codebook. vectors: [M, D], book: [C, D], both float32 -> [M] int64"""
    return torch.cat([_far(part, book).argmin(1) for part in vectors.split(CHUNK)])


def nearest_few(vectors: Tensor, book: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest ones, from near to far: distances [M, count] float32, numbers [M, count] int64."""
    found = [_far(part, book).topk(count, dim=1, largest=False) for part in vectors.split(CHUNK)]
    numbers = torch.cat([part.indices for part in found])
    square = torch.cat([part.values for part in found]) + vectors.square().sum(1, keepdim=True)
    return square.clamp_min_(0).sqrt_(), numbers


def fitted(vectors: Tensor, book: Tensor, counts: Tensor, rounds: int = 30) -> Tensor:
    """k-means from a codebook on: [C, D] float32. A vector that nothing is nearest to stays where it was.

    vectors: [M, D] float32
    counts: [M], what the squared error of each counts
    """
    heavy = torch.cat((vectors, torch.ones_like(vectors[:, :1])), 1) * counts[:, None]
    for _ in range(rounds):
        sums = heavy.new_zeros(len(book), heavy.shape[1])
        for part, mass in zip(vectors.split(CHUNK), heavy.split(CHUNK), strict=True):
            _add_at(sums, _far(part, book).argmin(1), mass)
        book = torch.where(sums[:, -1:] > 0, sums[:, :-1] / sums[:, -1:].clamp_min(1e-30), book)
    return book


def _add_at(sums: Tensor, numbers: Tensor, mass: Tensor) -> None:
    """Rows [M, D] are added to the rows of [C, D] that numbers [M] say."""
    if sums.device.type == "cpu":
        sums.index_add_(0, numbers, mass)
    else:  # a product, because GPUs add at places in no fixed order
        members = numbers == torch.arange(len(sums), device=sums.device)[:, None]
        sums += members.to(mass.dtype) @ mass


def _far(vectors: Tensor, book: Tensor) -> Tensor:
    """Squared distances [M, C], less the squared length of each vector, which changes no order."""
    return torch.addmm(book.square().sum(1), vectors, book.t(), alpha=-2)
