#pragma version 0.4.3
#pragma evm-version cancun
# A double of Multicall3 for the tests: the one function of it that the x402 SDK calls.

struct Call:
    target: address
    callData: Bytes[4096]

struct Result:
    success: bool
    returnData: Bytes[1024]


@external
@payable
def tryAggregate(require_success: bool, calls: DynArray[Call, 16]) -> DynArray[Result, 16]:
    results: DynArray[Result, 16] = []
    for call: Call in calls:
        success: bool = False
        answer: Bytes[1024] = b""
        success, answer = raw_call(call.target, call.callData, max_outsize=1024, revert_on_failure=False)
        assert success or not require_success, "Multicall3: call failed"
        results.append(Result(success=success, returnData=answer))
    return results
