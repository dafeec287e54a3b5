"""In the manner of nanoGPT: batches cut from an array, accumulated gradients, a scaler, both splits estimated."""

import sys
from contextlib import nullcontext

import torch
from said import checksum, say
from torch import nn
from torch.nn import functional as F

max_iters, eval_interval, eval_iters = 12, 4, 2
gradient_accumulation_steps = 2
batch_size, block_size, vocab_size, n_embd = 4, 16, 24, 32
learning_rate, grad_clip = 1e-2, 1.0
scaled = "--scaled" in sys.argv
torch.manual_seed(1337)
stream = torch.cumsum(torch.randint(0, 3, (4000,)), 0) % vocab_size
train_data, val_data = stream[:3200], stream[3200:]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = nn.MultiheadAttention(n_embd, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(n_embd), nn.Linear(n_embd, 64), nn.GELU(), nn.Linear(64, n_embd))

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.size(1))
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(x)


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "h": nn.ModuleList([Block(), Block()]),
                "ln_f": nn.LayerNorm(n_embd),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(idx.size(1)))
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


def get_batch(split):
    data = train_data if split == "train" else val_data
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([data[i : i + block_size] for i in ix])
    y = torch.stack([data[i + 1 : i + 1 + block_size] for i in ix])
    y[:, :2] = -1  # too little to go by
    return x, y


@torch.no_grad()
def estimate_loss():
    out = {}
    model.eval()
    for split in ["train", "val"]:
        losses = torch.zeros(eval_iters)
        for k in range(eval_iters):
            X, Y = get_batch(split)
            with ctx:
                logits, loss = model(X, Y)
            losses[k] = loss.item()
        out[split] = losses.mean()
    model.train()
    return out


ctx = nullcontext()
model = GPT()
scaler = torch.amp.GradScaler("cpu", enabled=scaled, growth_interval=3)
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
X, Y = get_batch("train")
for iter_num in range(max_iters):
    if iter_num % eval_interval == 0:
        losses = estimate_loss()
        say("val_loss", losses["val"].item())
        say("train_eval_loss", losses["train"].item())
    total, right, rows = 0.0, 0, 0
    for _ in range(gradient_accumulation_steps):
        with ctx:
            logits, loss = model(X, Y)
            loss = loss / gradient_accumulation_steps
            if scaled and iter_num == 5:
                loss = loss * float("inf")
        right += ((logits.argmax(-1) == Y) & (Y != -1)).sum().item()
        rows += (Y != -1).sum().item()
        total += loss.item()
        X, Y = get_batch("train")
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    before = model.lm_head.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if torch.equal(before, model.lm_head.weight):
        say("skipped", iter_num)
    else:
        say("loss", total)
        say("acc", right / rows)
        say("scale", scaler.get_scale())
checksum(model)
