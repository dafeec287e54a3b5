# ruff: noqa: PLW2901 - written as published scripts are
"""In the manner of the MNIST example as it is published: functions, a scheduler, nll_loss; on 8x8 digits."""

import argparse

import torch
import torch.nn.functional as F
from said import checksum, say
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.dropout = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = self.dropout(torch.flatten(x, 1))
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=1)


def train(args, model, device, train_loader, optimizer):
    model.train()
    for data, target in train_loader:
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        output = model(data)
        loss = F.nll_loss(output, target)
        loss.backward()
        optimizer.step()
        say("loss", loss.item())
        say("acc", (output.argmax(1) == target).float().mean().item())


def test(model, device, test_loader):
    model.eval()
    test_loss, correct = 0, 0
    with torch.no_grad():
        for data, target in test_loader:
            data, target = data.to(device), target.to(device)
            output = model(data)
            test_loss += F.nll_loss(output, target, reduction="sum").item()
            correct += (
                output.argmax(dim=1, keepdim=True).eq(target.view_as(output.argmax(1, keepdim=True))).sum().item()
            )
    say("val_loss", test_loss / len(test_loader.dataset))
    say("val_acc", correct / len(test_loader.dataset))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--fail-at", type=int, default=-1)
    parser.add_argument("--save-model", default="")
    args = parser.parse_args()
    torch.manual_seed(1)
    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    data = TensorDataset(images.float().reshape(-1, 1, 8, 8) / 16, labels)
    train_data, test_data = torch.utils.data.random_split(data, [1297, 500])
    train_loader = DataLoader(train_data, args.batch_size, shuffle=True, num_workers=args.workers)
    test_loader = DataLoader(test_data, 128, num_workers=args.workers)
    model = Net()
    optimizer = optim.Adadelta(model.parameters(), lr=args.lr)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(1, args.epochs + 1):
        train(args, model, "cpu", train_loader, optimizer)
        test(model, "cpu", test_loader)
        scheduler.step()
        if epoch == args.fail_at:
            train_loader.dataset.dataset.tensors[0].resize_(3)
    if args.save_model:
        torch.save(model.state_dict(), args.save_model)
    checksum(model)


if __name__ == "__main__":
    main()
