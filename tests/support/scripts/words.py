# ruff: noqa: PTH123, B007 - written as published scripts are
"""In the manner of the word language model as it is published: all at module level, an LSTM, clipping, no loader."""

import argparse

import torch
from said import checksum, say
from torch import nn

parser = argparse.ArgumentParser(description="language model")
parser.add_argument("save")
parser.add_argument("--nhid", type=int, default=32)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--clip", type=float, default=0.25)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--batch_size", type=int, default=8)
parser.add_argument("--bptt", type=int, default=12)
args = parser.parse_args()
torch.manual_seed(1111)
ntokens = 30


class RNNModel(nn.Module):
    def __init__(self, ntoken, nhid):
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.encoder = nn.Embedding(ntoken, nhid)
        self.rnn = nn.LSTM(nhid, nhid, 2, dropout=0.1)
        self.decoder = nn.Linear(nhid, ntoken)
        self.nhid = nhid

    def forward(self, data, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(data)), hidden)
        decoded = self.decoder(self.drop(output)).view(-1, ntokens)
        return torch.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, bsz):
        return torch.zeros(2, bsz, self.nhid), torch.zeros(2, bsz, self.nhid)


def generated_corpus(length, seed):
    # Each word follows from the one before it, most of the time.
    generator = torch.Generator().manual_seed(seed)
    words = [0]
    for surprise in torch.randint(0, 10 * ntokens, (length - 1,), generator=generator).tolist():
        words.append(surprise if surprise < ntokens else (7 * words[-1] + 3) % ntokens)
    return torch.tensor(words)


def batchify(data, bsz):
    return data[: len(data) // bsz * bsz].view(bsz, -1).t().contiguous()


def get_batch(source, i):
    seq_len = min(args.bptt, len(source) - 1 - i)
    return source[i : i + seq_len], source[i + 1 : i + 1 + seq_len].reshape(-1)


def repackage_hidden(h):
    return tuple(v.detach() for v in h)


train_data = batchify(generated_corpus(2000, 1), args.batch_size)
val_data = batchify(generated_corpus(500, 2), 4)
model = RNNModel(ntokens, args.nhid)
criterion = nn.NLLLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)


def evaluate(data_source):
    model.eval()
    total_loss = 0.0
    hidden = model.init_hidden(4)
    with torch.no_grad():
        for i in range(0, data_source.size(0) - 1, args.bptt):
            data, targets = get_batch(data_source, i)
            output, hidden = model(data, hidden)
            hidden = repackage_hidden(hidden)
            total_loss += len(data) * criterion(output, targets).item()
    return total_loss / (len(data_source) - 1)


def train():
    model.train()
    hidden = model.init_hidden(args.batch_size)
    for i in range(0, train_data.size(0) - 1, args.bptt):
        data, targets = get_batch(train_data, i)
        optimizer.zero_grad()
        hidden = repackage_hidden(hidden)
        output, hidden = model(data, hidden)
        loss = criterion(output, targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        say("loss", loss.item())
        say("norm", norm.item())


for epoch in range(1, args.epochs + 1):
    train()
    say("val_loss", evaluate(val_data))
    with open(args.save, "wb") as f:
        torch.save(model, f)
with open(args.save, "rb") as f:
    checksum(torch.load(f, weights_only=False))
